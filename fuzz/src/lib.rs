//! What the targets share: reading choices from the input of the fuzzer.
//!
//! A target that drives a machine reads an operation, performs it, checks what must always hold, and
//! reads the next, until the input is used up. Each choice takes its bytes from the front, so that a
//! change of one byte changes one choice and everything before it stays as it was.

pub mod btp;
pub mod stream;

use ilp_packet::Timestamp;

/// Where every target's clock starts.
pub const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// The input, read as choices.
#[derive(Debug)]
pub struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    /// Starts at the front of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// Whether the input is used up; every further choice is zero.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *byte
    }

    /// A number below `below`, which must not be zero.
    pub fn below(&mut self, below: usize) -> usize {
        usize::from(self.byte()) % below
    }

    /// Yes or no.
    pub fn coin(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// At most `len` of the next bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// Bytes with their length in front, at most 255.
    pub fn chunk(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte());
        self.bytes(len)
    }

    /// An integer: mostly a small one, often one at a boundary, seldom any.
    pub fn integer(&mut self) -> u64 {
        const BOUNDARIES: [u64; 16] = [
            0,
            1,
            127,
            128,
            255,
            256,
            32_767,
            32_768,
            65_534,
            65_535,
            1 << 31,
            1 << 32,
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
            1_000_000_000,
        ];
        match self.byte() {
            small @ 0..=199 => u64::from(small),
            boundary @ 200..=231 => BOUNDARIES[usize::from(boundary - 200) % BOUNDARIES.len()],
            232..=247 => u64::from(self.byte()) << 8 | u64::from(self.byte()),
            248..=255 => self
                .bytes(8)
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        }
    }
}
