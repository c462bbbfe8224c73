//! Loom models of the shipped `Idle`, with two Ps. Work is a count that orders nothing; what surrounds each call is what
//! `proc/` does there.
//!
//! Most models make one move of each thread meet one of another, from every state that matters, and then look at the
//! sum: each P is idle or held by one M, nobody spins, and no work lies where every M rests. The last is a whole machine.
//!
//! Not covered: more than two Ps; more Ms than three; the timers, for which the models of
//! netpoll/until.rs are; `CHECK_TICKS` and all else that makes an M look at a queue of its own accord. Loom weakens SeqCst accesses but not
//! fences, and there are only fences here.
//!
//! | mutant (`--cfg 'gopark_mutant="..."'`) | model that fails |
//! |---|---|
//! | `idle_release_no_fence` | `work_is_seen_by_who_releases_or_wakes_somebody` |
//! | `idle_wake_no_fence` | `work_is_seen_by_who_releases_or_wakes_somebody` |
//! | `idle_stop_no_fence` | `the_last_spinner_looks_again_or_is_not_counted` |
//! | `idle_give_no_fence` | `work_is_seen_by_who_gives_its_p_away_or_wakes_somebody` |
//! | `idle_wake_given_twice` | `a_second_wake_does_not_give_the_poller_a_second_p` |
//! | `idle_wake_poller_at_job` | `the_poller_is_chosen_for_one_thing` |
//! | `idle_doze_no_poller` | `sysmon_does_not_doze_while_nobody_polls` |

use super::super::park::Parker;
use super::*;
use Ordering::Relaxed;
use loom::thread::{self, JoinHandle};
use std::sync::Arc;

const M0: MId = 0;
const M1: MId = 1;

struct World {
    idle: Idle,
    /// Tasks in the global queue.
    work: AtomicU32,
    /// Sysmon's clock, started or not.
    clock: Parker,
}

impl Default for World {
    fn default() -> World {
        World { idle: Idle::new(2), work: AtomicU32::new(0), clock: Parker::new() }
    }
}

impl World {
    fn new() -> Arc<World> {
        Arc::new(World::default())
    }

    /// `Sched::ready` on a thread outside.
    fn submit(&self) -> Option<Wakeup> {
        self.work.fetch_add(1, Relaxed);
        self.idle.wake()
    }

    fn work_waiting(&self) -> bool {
        self.work.load(Relaxed) > 0
    }

    /// `M::go_idle` up to where it waits: the P that it goes on with, spinning, or how it waits.
    fn go_idle(&self, m: MId, p: PId, spinning: bool) -> Result<PId, Role> {
        let role = self.idle.release(m, p, spinning);
        let again = if role != Role::Exit && self.work_waiting() { self.idle.retract(m, role) } else { None };
        again.ok_or(role)
    }

    /// Sysmon, where it waits for its clock.
    fn nap(&self) {
        if self.idle.doze() {
            self.clock.park();
        }
    }

    /// `M::take_p`.
    fn take_p(&self) {
        if self.idle.rouse() {
            self.clock.unpark();
        }
    }

    /// What an M does that was woken, and finds nothing: so its P and its place among the spinning were real.
    fn woken(&self, wakeup: Option<Wakeup>) {
        let p = match wakeup {
            None => return,
            Some(Wakeup::Break) => match self.idle.poller_back() {
                Back::Spinning(p) => p,
                back => panic!("the P that was given is lost: {back:?}"),
            },
            Some(Wakeup::Unpark(_, p) | Wakeup::Start(p)) => p,
        };
        self.take_p();
        self.idle_again(p, true);
    }

    fn idle_again(&self, p: PId, spinning: bool) {
        self.idle.lists.lock().ps.push(p);
        self.idle.word.fetch_add(IDLE - if spinning { SPINNING } else { 0 }, Relaxed);
    }

    /// Everybody has come to rest: nobody spins, and each P is there once.
    fn check(&self) {
        assert_eq!(self.idle.word.load(Relaxed), 2 * IDLE);
        let lists = self.idle.lists.lock();
        let mut ps = lists.ps.clone();
        ps.sort_unstable();
        assert_eq!(ps, [0, 1]);
        assert!(lists.poller.as_ref().is_none_or(|poller| poller.given.is_none()));
    }

    /// M0 polls, and every P is idle.
    fn polled() -> Arc<World> {
        let world = World::new();
        let p = world.idle.acquire().unwrap();
        assert_eq!(world.idle.release(M0, p, false), Role::Poll);
        world
    }

    fn acquire_both(&self) -> [PId; 2] {
        [self.idle.acquire().unwrap(), self.idle.acquire().unwrap()]
    }
}

fn with<R: 'static>(world: &Arc<World>, f: impl FnOnce(&World) -> R + 'static) -> JoinHandle<R> {
    let world = world.clone();
    thread::spawn(move || f(&world))
}

fn bounded(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

/// Rule 1: an M gives its P up while somebody submits. It sees the work, or whoever submits wakes it.
#[test]
fn work_is_seen_by_who_releases_or_wakes_somebody() {
    for spinning in [false, true] {
        loom::model(move || {
            let world = World::new();
            let [p0, p1] = world.acquire_both();
            if spinning {
                assert!(world.idle.start_spinning());
            }
            let submitter = with(&world, World::submit);
            let gone = world.go_idle(M0, p0, spinning);
            let wakeup = submitter.join().unwrap();
            assert!(gone.is_ok() || wakeup.is_some(), "work, and every M at rest");
            // An M that took a P back has it from `wake`, if that chose it, and then need not be woken any more.
            match gone {
                Ok(p) => {
                    world.idle_again(p, true);
                    if wakeup.is_some_and(|w| w != Wakeup::Break) {
                        world.woken(wakeup);
                    }
                }
                Err(_) => world.woken(wakeup),
            }
            world.idle_again(p1, false);
            world.check();
        });
    }
}

/// Rule 2, trap S14: the last that spins finds work, and another submits, whom the count of the spinning keeps from
/// waking anybody. Two submit, so that one may be kept from it by the other's wake.
#[test]
fn the_last_spinner_looks_again_or_is_not_counted() {
    for submitters in [1, 2] {
        bounded(3, move || {
            let world = World::new();
            let p0 = world.idle.acquire().unwrap();
            assert!(world.idle.start_spinning());
            let submitters: Vec<_> = (0..submitters).map(|_| with(&world, World::submit)).collect();
            // `M::reset_spinning`.
            let again = world.idle.stop_spinning() && world.work_waiting();
            let mut wakes = vec![if again { world.idle.wake() } else { None }];
            wakes.extend(submitters.into_iter().map(|submitter| submitter.join().unwrap()));
            assert!(wakes.iter().any(Option::is_some), "work, and only busy Ms");
            wakes.into_iter().for_each(|wakeup| world.woken(wakeup));
            world.idle_again(p0, false);
            world.check();
        });
    }
}

/// Two Ms stop spinning at once; one of them is the last.
#[test]
fn of_two_spinners_one_is_the_last() {
    loom::model(|| {
        let world = World::new();
        let ps = world.acquire_both();
        world.idle.word.fetch_add(2 * SPINNING, Relaxed);
        world.work.store(1, Relaxed);
        let other = with(&world, |world| world.idle.stop_spinning());
        let last = world.idle.stop_spinning();
        assert!(last != other.join().unwrap());
        ps.into_iter().for_each(|p| world.idle_again(p, false));
        world.check();
    });
}

/// Trap S4: the poller is chosen, and comes back of its own accord. It has the P, or another M is started with one; the
/// count of idle Ps is right in the end.
#[test]
fn the_poller_comes_back_when_it_is_chosen() {
    loom::model(|| {
        let world = World::new();
        let p = world.idle.acquire().unwrap();
        assert_eq!(world.idle.release(M0, p, false), Role::Poll);
        let waker = with(&world, World::submit);
        let back = world.idle.poller_back();
        match (waker.join().unwrap(), back) {
            (Some(Wakeup::Break), Back::Spinning(p)) => world.idle_again(p, true),
            (Some(Wakeup::Start(q)), Back::Running(p)) => {
                assert_ne!(p, q);
                world.idle_again(q, true);
                world.idle_again(p, false);
            }
            other => panic!("{other:?}"),
        }
        world.check();
    });
}

/// Two submit while the poller rests alone: one of them gives it a P. The other sees that one spins, or starts a thread
/// with the second P; it never gives the poller that one too.
#[test]
fn a_second_wake_does_not_give_the_poller_a_second_p() {
    bounded(3, || {
        let world = World::new();
        let p = world.idle.acquire().unwrap();
        assert_eq!(world.idle.release(M0, p, false), Role::Poll);
        // The third stops spinning between the two.
        world.idle.word.fetch_add(SPINNING, Relaxed);
        let spinner = with(&world, |world| {
            world.idle.stop_spinning();
            world.submit()
        });
        let mut wakes = vec![world.submit()];
        if wakes[0] == Some(Wakeup::Break) {
            // Whoever was woken counts as spinning until it has found work; here another M does so in its place.
            world.idle.word.fetch_sub(SPINNING, Relaxed);
            wakes.push(world.submit());
            world.idle.word.fetch_add(SPINNING, Relaxed);
        }
        wakes.push(spinner.join().unwrap());
        assert!(wakes.iter().filter(|w| **w == Some(Wakeup::Break)).count() <= 1);
        wakes.sort_by_key(|w| *w == Some(Wakeup::Break));
        for wakeup in wakes {
            world.woken(wakeup);
        }
        world.check();
    });
}

/// One wants the poller for a job without a P, another for work: it is chosen once, and nothing is given away twice.
#[test]
fn the_poller_is_chosen_for_one_thing() {
    loom::model(|| {
        let world = World::new();
        let [p0, p1] = world.acquire_both();
        assert_eq!(world.idle.release(M0, p0, false), Role::Poll);
        let waker = with(&world, World::submit);
        let job = world.idle.take_poller();
        let wakeup = waker.join().unwrap();
        match (job, wakeup, world.idle.poller_back()) {
            (true, Some(Wakeup::Start(p)), Back::Job) | (false, Some(Wakeup::Break), Back::Spinning(p)) => {
                world.idle_again(p, true);
            }
            wrong => panic!("{wrong:?}"),
        }
        world.idle_again(p1, false);
        world.check();
    });
}

/// An M changes its mind while somebody chooses it, as the poller and as one that parks. It keeps one P, or has its orders.
#[test]
fn retract_meets_wake() {
    for parks in [false, true] {
        loom::model(move || {
            let world = World::new();
            let [p0, p1] = world.acquire_both();
            if parks {
                assert_eq!(world.idle.release(M1, p1, false), Role::Poll);
            }
            let role = world.idle.release(M0, p0, false);
            assert_eq!(role, if parks { Role::Park } else { Role::Poll });
            let waker = with(&world, World::submit);
            let kept = world.idle.retract(M0, role);
            let wakeup = waker.join().unwrap();
            match (kept, wakeup) {
                // The submitter came late, found it spinning, and left the work to it.
                (Some(p), None) => world.idle_again(p, true),
                // It gave the P that was kept; the break ends a later sleep.
                (Some(p), Some(Wakeup::Break)) if !parks => world.idle_again(p, true),
                // Chosen before: two Ms, two Ps.
                (kept, Some(wakeup)) => {
                    assert!(kept.is_some() || wakeup == Wakeup::Unpark(M0, p0), "{kept:?} {wakeup:?}");
                    kept.into_iter().for_each(|p| world.idle_again(p, true));
                    world.woken(Some(wakeup));
                }
                (None, None) => panic!("work, and every M at rest"),
            }
            if !parks {
                world.idle_again(p1, false);
            }
            world.check();
        });
    }
}

/// One wants to wake somebody for the last idle P, which another M takes meanwhile. While it is counted as spinning for
/// nothing, a third submits: the M that took the P sees that work when it goes idle, or somebody is woken.
#[test]
fn a_wake_that_finds_no_p_hides_no_work() {
    bounded(3, || {
        let world = World::new();
        let p1 = world.idle.acquire().unwrap();
        let handy = with(&world, |world| world.idle.wake_if_handy());
        let submitter = with(&world, World::submit);
        let p0 = world.idle.acquire();
        // `go_idle` of the only M with a P, or of the M that lost its P to a wake.
        let gone = p0.map(|p0| world.go_idle(M0, p0, false));
        let wakes = [handy.join().unwrap(), submitter.join().unwrap()];
        let found = gone.is_some_and(|gone| gone.is_ok());
        assert!(found || wakes.iter().any(Option::is_some), "work, and every M at rest");
        let broken = wakes.contains(&Some(Wakeup::Break));
        match gone {
            Some(Ok(p)) => {
                world.idle_again(p, true);
                wakes.into_iter().filter(|w| *w != Some(Wakeup::Break)).for_each(|w| world.woken(w));
            }
            _ => wakes.into_iter().for_each(|w| world.woken(w)),
        }
        assert!(!broken || gone.is_some());
        world.idle_again(p1, false);
        world.check();
    });
}

/// An M gives its P away and goes on without it (`M::handoffp`), while work comes in from outside, which finds no idle P.
#[test]
fn work_is_seen_by_who_gives_its_p_away_or_wakes_somebody() {
    loom::model(|| {
        let world = World::new();
        let [p0, p1] = world.acquire_both();
        let submitter = with(&world, World::submit);
        world.idle.give(p0, false);
        let seen = if world.work_waiting() { world.idle.wake() } else { None };
        let wakes = [seen, submitter.join().unwrap()];
        assert!(wakes.iter().any(Option::is_some), "work, an idle P, and nobody who looks");
        wakes.into_iter().for_each(|wakeup| world.woken(wakeup));
        world.idle_again(p1, false);
        world.check();
    });
}

/// Trap S5: no thread can be started for a wake. While it counts as spinning, an M goes to rest with nothing to do and a
/// second task comes in, which wakes nobody.
#[test]
fn a_thread_that_cannot_be_started_hides_no_work() {
    bounded(3, || {
        let world = World::new();
        let [p0, p1] = world.acquire_both();
        world.idle.give(p1, false);
        // The wake was for a task that a busy M has run already.
        let failing = with(&world, |world| match world.idle.wake() {
            Some(Wakeup::Start(p)) => {
                if world.idle.give(p, true) && world.work_waiting() {
                    world.idle.wake()
                } else {
                    None
                }
            }
            other => other,
        });
        let submitter = with(&world, World::submit);
        let gone = world.go_idle(M0, p0, false);
        let wakes = [failing.join().unwrap(), submitter.join().unwrap()];
        assert!(gone.is_ok() || wakes.iter().any(Option::is_some), "work, and every M at rest");
    });
}

/// Sysmon begins to doze while a P is taken: it does not, or its clock is started (to doze for ever is a deadlock, which loom
/// reports).
#[test]
fn who_takes_a_p_starts_sysmons_clock() {
    loom::model(|| {
        let world = World::polled();
        let sysmon = with(&world, World::nap);
        let p = world.idle.acquire().unwrap();
        world.take_p();
        sysmon.join().unwrap();
        world.idle_again(p, false);
        world.check();
    });
}

/// The same for a P that is taken, given back, and taken by a wake.
#[test]
fn each_doze_of_sysmon_ends() {
    bounded(4, || {
        let world = World::polled();
        let stopping = Arc::new(AtomicU32::new(0));
        let stop = stopping.clone();
        let sysmon = with(&world, move |world| {
            for _ in 0..3 {
                if stopping.load(Relaxed) == 1 {
                    break;
                }
                world.nap();
            }
        });
        let p = world.idle.acquire().unwrap();
        world.take_p();
        world.idle.give(p, false);
        let wakeup = world.submit();
        assert!(wakeup.is_some());
        world.woken(wakeup);
        // The runtime ends; else it might doze on, rightly.
        stop.store(1, Relaxed);
        world.clock.unpark();
        sysmon.join().unwrap();
        assert_eq!(world.idle.word.load(Relaxed) & !DOZES, 2 * IDLE);
    });
}

/// The poller is given a P, finds that its task blocks, and gives the P up again; no thread can be started in its place.
/// Nobody polls then but sysmon, which must not doze.
#[test]
fn sysmon_does_not_doze_while_nobody_polls() {
    loom::model(|| {
        let world = World::polled();
        let sysmon = with(&world, World::nap);
        assert_eq!(world.submit(), Some(Wakeup::Break));
        let Back::Spinning(p) = world.idle.poller_back() else { panic!("the P that was given is lost") };
        world.take_p();
        world.idle.stop_spinning();
        world.idle.give(p, false);
        sysmon.join().unwrap();
    });
}

/// An M that has lost its P goes to rest while another gives one away, and work comes in: it takes that P, or is woken with
/// it, or the work is seen by who gives the P away.
#[test]
fn an_m_without_a_p_rests_while_one_is_given_away() {
    loom::model(|| {
        let world = World::new();
        let [p0, p1] = world.acquire_both();
        let submitter = with(&world, World::submit);
        let rests = with(&world, |world| world.idle.rest(M1));
        world.idle.give(p0, false);
        let seen = if world.work_waiting() { world.idle.wake() } else { None };
        let (wakes, rests) = ([seen, submitter.join().unwrap()], rests.join().unwrap());
        assert!(rests.is_ok() || wakes.iter().any(Option::is_some), "work, an idle P, and nobody who looks");
        rests.into_iter().for_each(|p| world.idle_again(p, false));
        wakes.into_iter().for_each(|wakeup| world.woken(wakeup));
        world.idle_again(p1, false);
        world.check();
    });
}

/// The runtime ends while two Ms go to rest: each exits, or is told to.
#[test]
fn every_m_exits_when_the_runtime_stops() {
    loom::model(|| {
        let world = World::new();
        let [p0, p1] = world.acquire_both();
        let stop = with(&world, |world| world.idle.stop());
        let other = with(&world, move |world| world.idle.release(M1, p1, false));
        let roles = [world.idle.release(M0, p0, false), other.join().unwrap()];
        let told = stop.join().unwrap();
        for (m, role) in roles.into_iter().enumerate() {
            // `Role::Poll`: the break that follows `stop` ends its sleep.
            assert_eq!(told.contains(&(m as MId)), role == Role::Park, "{roles:?} {told:?}");
        }
        assert!(roles.iter().filter(|role| **role == Role::Poll).count() <= 1);
        world.check();
    });
}

/// Two Ms, two Ps, a poller that an eventfd wakes, and a thread outside: from the first spawn to the end.
struct Machine {
    world: World,
    parkers: [Parker; 2],
    orders: [AtomicU32; 2],
    /// The poller's sleep: the break alone, without network, as a token.
    network: Parker,
    done: AtomicU32,
    finished: Parker,
}

const EXIT: u32 = 9;

impl Machine {
    fn carry_out(&self, wakeup: Option<Wakeup>) {
        match wakeup {
            None => {}
            Some(Wakeup::Unpark(m, p)) => self.order(m, p),
            Some(Wakeup::Break) => self.network.unpark(),
            Some(Wakeup::Start(_)) => unreachable!("both Ms rest when the model begins"),
        }
    }

    fn order(&self, m: MId, orders: u32) {
        self.orders[m as usize].store(orders, Relaxed);
        self.parkers[m as usize].unpark();
    }

    fn m(&self, m: MId, mut role: Role) {
        let World { idle, work, .. } = &self.world;
        loop {
            let (mut p, mut spinning) = match role {
                Role::Exit => return,
                Role::Park => {
                    self.parkers[m as usize].park();
                    match self.orders[m as usize].load(Relaxed) {
                        EXIT => return,
                        p => (p, true),
                    }
                }
                Role::Poll => {
                    self.network.park();
                    match idle.poller_back() {
                        Back::Spinning(p) => (p, true),
                        Back::Running(p) => (p, false),
                        Back::Job => unreachable!("there are no jobs"),
                        Back::NoP => match idle.rest(m) {
                            Ok(p) => (p, false),
                            Err(next) => {
                                role = next;
                                continue;
                            }
                        },
                    }
                }
            };
            role = loop {
                while work.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
                    if std::mem::take(&mut spinning) && idle.stop_spinning() && self.world.work_waiting() {
                        self.carry_out(idle.wake());
                    }
                    if self.done.fetch_add(1, Relaxed) == 1 {
                        self.finished.unpark();
                    }
                }
                match self.world.go_idle(m, p, spinning) {
                    Ok(again) => (p, spinning) = (again, true),
                    Err(role) => break role,
                }
            };
        }
    }
}

/// Two tasks come from outside to a machine at rest; both run, and everybody exits. A wake that is lost leaves all of them
/// asleep, which loom reports as a deadlock.
#[test]
fn a_machine_runs_what_is_submitted_and_stops() {
    bounded(2, || {
        let machine = Machine {
            world: World::default(),
            parkers: [Parker::new(), Parker::new()],
            orders: [AtomicU32::new(EXIT), AtomicU32::new(EXIT)],
            network: Parker::new(),
            done: AtomicU32::new(0),
            finished: Parker::new(),
        };
        let machine = Arc::new(machine);
        let ps = machine.world.acquire_both();
        let threads = ps.map(|p| {
            let (m, role) = (p, machine.world.idle.release(p, p, false));
            let machine = machine.clone();
            thread::spawn(move || machine.m(m, role))
        });
        for _ in 0..2 {
            machine.carry_out(machine.world.submit());
        }
        machine.finished.park();
        for m in machine.world.idle.stop() {
            machine.order(m, EXIT);
        }
        machine.network.unpark();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        machine.world.check();
    });
}
