//! A program that an uploader might send who means no good. Tests run it in pods; `cargo xtask test` builds it
//! as a static program, so that any image can hold it.
//!
//! ```text
//! hostile report          what it sees and what it can do, a line each, to be compared as a whole
//! hostile who             user and capabilities, for when it was started by way of a set-user-ID bit
//! hostile hunt WORD       looks for WORD in the name of every file and in every process' environment
//! hostile processes       starts processes for ever
//! hostile memory          takes memory for ever
//! hostile files DIRECTORY writes files until it can no more, and begins again
//! hostile flood           writes to both outputs for ever
//! hostile nonsense        talks nonsense to localhost:7768 over many connections, for ever
//! ```
//! As the first process of a machine it takes the place of the agent and is hostile to the host (`guest`).
//!
//! Trap: this has to try things by their numbers, past any library, hence the unsafe code (in `calls`).

mod attacks;
mod attempts;
mod calls;
mod guest;
mod sight;

fn main() {
    if guest::is_first() {
        // Its end is the end of the machine.
        return guest::run().unwrap_or_else(|error| eprintln!("{error}"));
    }
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match arguments[..] {
        ["report"] => {
            sight::tell();
            attempts::tell();
        }
        ["who"] => sight::tell_who(),
        ["hunt", word] => sight::hunt(word),
        ["processes"] => attacks::processes(),
        ["memory"] => attacks::memory(),
        ["files", directory] => attacks::files(directory),
        ["flood"] => attacks::flood(),
        ["nonsense"] => attacks::nonsense(),
        _ => {
            eprintln!(
                "hostile report | who | hunt WORD | processes | memory | files DIRECTORY | flood | nonsense"
            );
            std::process::exit(2);
        }
    }
}
