//! Layers of an image, put on top of each other: whatever they say, the archive that is made of them is
//! clean, with each name once, parents first, and links that lead to what came before.
#![no_main]

use codius_fuzz::Choices;
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
/// The types of entries that mean something, and some that do not.
const KINDS: &[u8] = b"0000557712222xxxLKgS346\0Q";
/// Parts of names that mean something.
const PARTS: &[&str] = &[
    "a",
    "b",
    "c",
    "d",
    "..",
    ".",
    "",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    ".wh..wh.x",
    ".wh.",
    "a/b",
];

fn name(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut name = Vec::new();
    for _ in 0..choices.below(5) {
        match choices.below(PARTS.len() + 1) {
            part if part < PARTS.len() => name.extend_from_slice(PARTS[part].as_bytes()),
            _ => name.extend_from_slice(choices.chunk()),
        }
        name.push(b'/');
    }
    if choices.below(8) > 0 {
        name.pop();
    }
    name
}

/// One entry, with a sum that is right: without it a fuzzer would not come far.
fn entry(choices: &mut Choices<'_>, tar: &mut Vec<u8>) {
    let kind = KINDS[choices.below(KINDS.len())];
    let (path, link) = (name(choices), name(choices));
    let contents = match kind {
        b'x' => {
            let (key, value) = match choices.below(5) {
                0 => ("path", path.clone()),
                1 => ("linkpath", link.clone()),
                2 => ("size", choices.integer().to_string().into_bytes()),
                3 => ("SCHILY.xattr.user.x", choices.chunk().to_vec()),
                _ => ("mtime", choices.chunk().to_vec()),
            };
            let rest = key.len() + value.len() + 3;
            let digits = (rest + rest.to_string().len()).to_string().len();
            let mut record = format!("{} {key}=", rest + digits).into_bytes();
            record.extend_from_slice(&value);
            record.push(b'\n');
            record
        }
        b'L' | b'K' => path.clone(),
        _ => choices.chunk().to_vec(),
    };
    let size = match choices.below(16) {
        0 => choices.integer(),
        _ => contents.len() as u64,
    };
    let mut header = [0; BLOCK];
    let put = |header: &mut [u8; BLOCK], at: usize, room: usize, bytes: &[u8]| {
        let length = bytes.len().min(room);
        header[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(&mut header, 0, 100, &path);
    put(&mut header, 100, 8, b"0000755\0");
    put(
        &mut header,
        124,
        12,
        format!("{:011o}\0", size & 0o77_777_777_777).as_bytes(),
    );
    header[156] = kind;
    put(&mut header, 157, 100, &link);
    put(&mut header, 257, 8, b"ustar\x0000");
    put(&mut header, 148, 8, b"        ");
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    put(&mut header, 148, 8, format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(&contents);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let mut layers = Vec::new();
    for _ in 0..=choices.below(3) {
        let mut tar = Vec::new();
        for _ in 0..choices.below(24) {
            entry(&mut choices, &mut tar);
        }
        if choices.below(8) == 0 {
            tar.extend_from_slice(choices.chunk());
        }
        layers.push(tar);
    }
    if choices.below(32) == 0 {
        layers = vec![choices.bytes(usize::MAX).to_vec()];
    }
    codius_image::fuzzing::layers(&layers);
});
