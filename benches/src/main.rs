//! The program; what it does is in the library, which the criterion benches use too.

fn main() -> std::process::ExitCode {
    benches::main()
}
