//! Writing an initramfs: a cpio archive in the "newc" format of the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

const MODE_FILE: u32 = 0o100_000;
const MODE_DIRECTORY: u32 = 0o040_000;
const MODE_CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that is being written. Everything in it belongs to root and has no date, so that the
/// same parts always give the same bytes.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, MODE_DIRECTORY | 0o755, (0, 0), &[]);
    }

    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, MODE_CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, MODE_FILE | mode, (0, 0), content);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let fields: [u32; 13] = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).expect("an initramfs is far below 4 GiB"),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(path.len() + 1).expect("paths are short"),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn busybox_reads_what_is_written() {
        let mut archive = Archive::default();
        archive.directory("modules");
        archive.file("modules/odd.ko", 0o444, b"12345");
        archive.device("console", 5, 1);
        archive.file("init", 0o555, b"");
        let mut child = Command::new("busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("install the package busybox-static");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&archive.finish())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<(&str, &str)> = listing
            .lines()
            .map(|line| (&line[..10], line.rsplit(' ').next().unwrap()))
            .collect();
        assert_eq!(
            lines,
            [
                ("drwxr-xr-x", "modules"),
                ("-r--r--r--", "modules/odd.ko"),
                ("crw-------", "console"),
                ("-r-xr-xr-x", "init"),
            ]
        );
    }
}
