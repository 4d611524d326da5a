//! What the disk itself takes to make a small write durable.

use std::{fs::File, os::unix::fs::FileExt, path::Path, time::Instant};

use anyhow::Result;

use super::median;

const WRITES: u64 = 500;
/// What SQLite writes for one packet: four pages of its log, each with a header.
const WRITE_BYTES: usize = 4 * (24 + 4096);
/// Written over and over, as the database's log is.
const FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Median time of a write and its `fdatasync` in a directory, in microseconds.
pub(super) fn sync_us(directory: &Path) -> Result<f64> {
    let file = File::create_new(directory.join("sync"))?;
    file.write_all_at(&vec![1; usize::try_from(FILE_BYTES)?], 0)?;
    file.sync_all()?;
    let bytes = [2; WRITE_BYTES];
    let mut times = Vec::new();
    for number in 0..WRITES {
        let offset = number * WRITE_BYTES as u64 % (FILE_BYTES - WRITE_BYTES as u64);
        let start = Instant::now();
        file.write_all_at(&bytes, offset)?;
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    std::fs::remove_file(directory.join("sync"))?;
    Ok(median(&times))
}
