//! Which instructions of a program are atomic, as objdump has them. For x86.

use std::collections::{HashMap, HashSet};
use std::process::{Command, Stdio};

/// The addresses of the atomic instructions in each object that was asked for.
pub(crate) struct Atomics(HashMap<String, HashSet<u64>>);

impl Atomics {
    /// `None`: there is no objdump.
    pub(crate) fn new() -> Option<Self> {
        let asked = Command::new("objdump").arg("--version").stdout(Stdio::null()).status();
        asked.is_ok_and(|status| status.success()).then(|| Atomics(HashMap::new()))
    }

    /// Is the instruction at this address of the object a read-modify-write that others see as one step, or a fence?
    pub(crate) fn has(&mut self, object: &str, address: u64) -> bool {
        if !self.0.contains_key(object) {
            // Of what is no file nothing is known.
            let output =
                Command::new("objdump").args(["-d", "--no-show-raw-insn", object]).stderr(Stdio::null()).output();
            let text = output.map(|output| output.stdout).unwrap_or_default();
            let found = String::from_utf8_lossy(&text).lines().filter_map(atomic).collect();
            self.0.insert(object.to_owned(), found);
        }
        self.0[object].contains(&address)
    }
}

/// The address in a line of objdump's, if the instruction is one.
fn atomic(line: &str) -> Option<u64> {
    let (address, instruction) = line.split_once(":\t")?;
    let (name, operands) = instruction.split_once(' ').unwrap_or((instruction, ""));
    // xchg needs no prefix where one of the two is in memory.
    let is = name == "lock" || name == "mfence" || name.starts_with("xchg") && operands.contains('(');
    is.then(|| u64::from_str_radix(address.trim(), 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_objdump() {
        let lines = [
            "    1149:\tlock cmpxchg %rcx,(%rdx)",
            "    1150:\txchg   %rax,0x8(%rdi)",
            "    1151:\txchg   %ax,%ax",
            "    1152:\tmfence",
            "    1153:\tmov    %rax,(%rdi)",
            "0000000000001149 <main>:",
        ];
        let found: Vec<_> = lines.into_iter().filter_map(atomic).collect();
        assert_eq!(found, [0x1149, 0x1150, 0x1152]);
    }
}
