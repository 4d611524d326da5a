//! What a process has used so far, as the kernel says.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Linux counts CPU time for user space in hundredths of a second (`sysconf(_SC_CLK_TCK)`).
const TICK: Duration = Duration::from_millis(10);

/// Time that all threads of a process have run, in user and kernel mode.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The second field is the name in parentheses, which may contain anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || -> Result<u32> {
        let field = fields.next().with_context(|| format!("{path} is short"))?;
        Ok(field.parse()?)
    };
    Ok(TICK * (ticks()? + ticks()?))
}

/// Memory that a process holds now, and the most that it ever held, in bytes.
pub fn memory(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let bytes = |name: &str| -> Result<u64> {
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"))
            .with_context(|| format!("{path} has no {name}"))?;
        Ok(kib.parse::<u64>()? * 1024)
    };
    Ok((bytes("VmRSS:")?, bytes("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let (now, most) = memory(std::process::id()).unwrap();
        assert!(0 < now && now <= most, "{now} {most}");
        cpu_time(std::process::id()).unwrap();
    }
}
