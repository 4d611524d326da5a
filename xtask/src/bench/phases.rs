//! The phases of a start, as the host logs them: `a pod has been started … cloned=true noted_ms=1 made_ms=14 …`,
//! each in milliseconds since the driver was called.

use super::figure::Figure;

const LINE: &str = "a pod has been started";
/// In the order in which a start reaches them.
const PHASES: [&str; 7] = [
    "noted", "made", "spawned", "prepared", "hello", "started", "durable",
];

/// Prints one figure a phase, of the last `runs` starts in the log.
pub(super) fn report(kind: &str, log: &str, runs: usize) {
    let starts: Vec<&str> = log.lines().filter(|line| line.contains(LINE)).collect();
    let measured = &starts[starts.len().saturating_sub(runs)..];
    for phase in PHASES {
        let values: Vec<f64> = measured.iter().filter_map(|line| at(line, phase)).collect();
        if !values.is_empty() {
            Figure::new(&format!("start/{kind}-phase-{phase}"), "ms", &values).print();
        }
    }
}

fn at(line: &str, phase: &str) -> Option<f64> {
    let name = format!("{phase}_ms=");
    let words = line.split_ascii_whitespace();
    words
        .filter_map(|word| word.strip_prefix(&name))
        .find_map(|value| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_found_in_a_line_of_the_log() {
        let line = "INFO pod{hash=x}: codius_microvm::start: a pod has been started pod=x cloned=true \
            noted_ms=1 made_ms=14 hello_ms=70 started_ms=700";
        assert_eq!(at(line, "made"), Some(14.0));
        assert_eq!(at(line, "started"), Some(700.0));
        assert_eq!(at(line, "durable"), None);
    }
}
