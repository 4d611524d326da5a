//! The subset of the Octet Encoding Rules that Interledger uses (RFC 30).
//!
//! A length determinant is one byte below 128, or `0x80 + n` followed by `n` bytes of length. The
//! short form must be used where it fits and leading zeros are not allowed, so that a value has
//! exactly one encoding. We read at most four length bytes: no Interledger message is longer.
//!
//! [`Reader`] only ever hands out slices of the input, so a claimed length that is not there is an
//! error and never an allocation.

/// Why bytes could not be read. Nothing was consumed that matters: the whole message is refused,
/// and whoever sent it has to fix it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OerError {
    /// The message ends inside the field that was being read.
    #[error("message ends early")]
    Truncated,
    /// A length determinant is zero bytes long, longer than four bytes, has a leading zero, or uses
    /// the long form for a length below 128.
    #[error("length is not in its canonical form")]
    BadLength,
    /// The field is longer than its type allows.
    #[error("field of {len} bytes is longer than the allowed {max}")]
    TooLong {
        /// Length that was claimed, bytes.
        len: usize,
        /// Largest length allowed here, bytes.
        max: usize,
    },
    /// A variable-length integer is empty or has a leading zero.
    #[error("integer is not in its canonical form")]
    BadInteger,
    /// A variable-length integer is larger than 64 bits.
    #[error("integer is larger than 64 bits")]
    IntegerTooLarge,
}

/// Longest length determinant we read, not counting its first byte.
const MAX_LENGTH_BYTES: usize = 4;

/// Reads fields from the front of a byte slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet. RFC 30 says that bytes after the known fields are ignored.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// A fixed-length octet string whose length is not known to the compiler.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], OerError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(OerError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// A fixed-length octet string.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], OerError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(OerError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// An unsigned integer of one byte.
    pub fn u8(&mut self) -> Result<u8, OerError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// An unsigned integer of two bytes, big endian.
    pub fn u16(&mut self) -> Result<u16, OerError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// An unsigned integer of four bytes, big endian.
    pub fn u32(&mut self) -> Result<u32, OerError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// An unsigned integer of eight bytes, big endian.
    pub fn u64(&mut self) -> Result<u64, OerError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A length determinant.
    pub fn length(&mut self) -> Result<usize, OerError> {
        let first = self.u8()?;
        if first < 0x80 {
            return Ok(usize::from(first));
        }
        let count = usize::from(first & 0x7f);
        if count == 0 || count > MAX_LENGTH_BYTES {
            return Err(OerError::BadLength);
        }
        let bytes = self.bytes(count)?;
        let len = bytes
            .iter()
            .fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
        if bytes[0] == 0 || len < 0x80 {
            return Err(OerError::BadLength);
        }
        Ok(len)
    }

    /// A variable-length octet string of any length.
    pub fn var_octets(&mut self) -> Result<&'a [u8], OerError> {
        let len = self.length()?;
        self.bytes(len)
    }

    /// A variable-length octet string of at most `max` bytes.
    pub fn var_octets_max(&mut self, max: usize) -> Result<&'a [u8], OerError> {
        let len = self.length()?;
        if len > max {
            return Err(OerError::TooLong { len, max });
        }
        self.bytes(len)
    }

    /// A variable-length unsigned integer that must fit 64 bits.
    pub fn var_uint(&mut self) -> Result<u64, OerError> {
        self.var_uint_or(None)
    }

    /// A variable-length unsigned integer; a larger one reads as [`u64::MAX`] (RFC 29 section 5.1.4
    /// asks for that in two fields).
    pub fn var_uint_saturating(&mut self) -> Result<u64, OerError> {
        self.var_uint_or(Some(u64::MAX))
    }

    fn var_uint_or(&mut self, too_large: Option<u64>) -> Result<u64, OerError> {
        let bytes = self.var_octets()?;
        match bytes {
            [] => Err(OerError::BadInteger),
            // Zero is the one integer whose first byte may be zero.
            [0, _, ..] => Err(OerError::BadInteger),
            _ if bytes.len() > 8 => too_large.ok_or(OerError::IntegerTooLarge),
            _ => Ok(bytes
                .iter()
                .fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte))),
        }
    }
}

/// Appends fields to a byte vector.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty writer with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            out: Vec::with_capacity(bytes),
        }
    }

    /// The bytes written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.out
    }

    /// Number of bytes written so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// The finished bytes.
    pub fn into_vec(self) -> Vec<u8> {
        self.out
    }

    /// A fixed-length octet string.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// An unsigned integer of one byte.
    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    /// An unsigned integer of two bytes, big endian.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    /// An unsigned integer of four bytes, big endian.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// An unsigned integer of eight bytes, big endian.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// A length determinant in its canonical form.
    pub fn length(&mut self, len: usize) {
        let bytes = len.to_be_bytes();
        match bytes[bytes.len() - 1] {
            short if len < 0x80 => self.u8(short),
            _ => {
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                let used = &bytes[zeros..];
                // At most eight bytes of length exist on any machine we build for.
                self.u8(0x80 | u8::try_from(used.len()).unwrap_or(8));
                self.bytes(used);
            }
        }
    }

    /// A variable-length octet string.
    pub fn var_octets(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.bytes(bytes);
    }

    /// A variable-length unsigned integer. Zero is one zero byte.
    pub fn var_uint(&mut self, value: u64) {
        let bytes = value.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(7);
        self.var_octets(&bytes[zeros..]);
    }
}

/// Bytes that a length determinant for `len` takes.
pub fn length_len(len: usize) -> usize {
    if len < 0x80 {
        return 1;
    }
    let bits = usize::BITS - len.leading_zeros();
    1 + (bits as usize).div_ceil(8)
}

/// Bytes that a variable-length octet string of `len` bytes takes, its length included.
pub fn var_octets_len(len: usize) -> usize {
    length_len(len) + len
}

/// Bytes that a variable-length unsigned integer takes, its length included.
pub fn var_uint_len(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    1 + (bits as usize).div_ceil(8).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .unwrap()
    }

    /// The table "Length determinant" of RFC 30, as far as we read lengths.
    #[test]
    fn lengths_of_rfc_30() {
        for (encoded, len) in [
            ("07", 7),
            ("8182", 130),
            ("821234", 4660),
            ("83abcdef", 11_259_375),
        ] {
            assert_eq!(Reader::new(&hex(encoded)).length(), Ok(len), "{encoded}");
            let mut writer = Writer::new();
            writer.length(len);
            assert_eq!(writer.into_vec(), hex(encoded));
            assert_eq!(length_len(len), hex(encoded).len());
        }
    }

    #[test]
    fn lengths_that_are_not_canonical_are_refused() {
        for encoded in [
            "80",
            "817f",
            "8100",
            "820080",
            "85010000000000",
            "88ac01055a1debac1e",
            "ff",
        ] {
            assert_eq!(
                Reader::new(&hex(encoded)).length(),
                Err(OerError::BadLength),
                "{encoded}"
            );
        }
        for encoded in ["", "81", "8201", "84ffffff"] {
            assert_eq!(
                Reader::new(&hex(encoded)).length(),
                Err(OerError::Truncated),
                "{encoded}"
            );
        }
    }

    #[test]
    fn a_claimed_length_that_is_not_there_is_truncated() {
        let bytes = hex("84ffffffff00");
        assert_eq!(Reader::new(&bytes).var_octets(), Err(OerError::Truncated));
        assert_eq!(
            Reader::new(&bytes).var_octets_max(1023),
            Err(OerError::TooLong {
                len: 0xffff_ffff,
                max: 1023
            })
        );
    }

    /// The tables "Fixed-length unsigned integers" of RFC 30.
    #[test]
    fn fixed_integers_of_rfc_30() {
        assert_eq!(Reader::new(&hex("00")).u8(), Ok(0));
        assert_eq!(Reader::new(&hex("1234")).u16(), Ok(4660));
        assert_eq!(Reader::new(&hex("abababab")).u32(), Ok(2_880_154_539));
        assert_eq!(
            Reader::new(&hex("ac01055a1debac1e")).u64(),
            Ok(12_394_193_534_107_495_454)
        );
        assert_eq!(
            Reader::new(&hex("ac01055a1debac")).u64(),
            Err(OerError::Truncated)
        );
    }

    #[test]
    fn variable_integers() {
        for (value, encoded) in [
            (0, "0100"),
            (1, "0101"),
            (255, "01ff"),
            (256, "020100"),
            (u64::MAX, "08ffffffffffffffff"),
        ] {
            let mut writer = Writer::new();
            writer.var_uint(value);
            assert_eq!(writer.as_slice(), hex(encoded));
            assert_eq!(var_uint_len(value), writer.len());
            assert_eq!(Reader::new(writer.as_slice()).var_uint(), Ok(value));
        }
        for encoded in ["00", "020001", "0a00000000000000000001"] {
            assert_eq!(
                Reader::new(&hex(encoded)).var_uint_saturating(),
                Err(OerError::BadInteger),
                "{encoded}"
            );
        }
        let nine = hex("09010000000000000000");
        assert_eq!(
            Reader::new(&nine).var_uint(),
            Err(OerError::IntegerTooLarge)
        );
        assert_eq!(Reader::new(&nine).var_uint_saturating(), Ok(u64::MAX));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value: u64, octets in prop::collection::vec(any::<u8>(), 0..700)) {
            let mut writer = Writer::new();
            writer.var_uint(value);
            writer.var_octets(&octets);
            prop_assert_eq!(writer.len(), var_uint_len(value) + var_octets_len(octets.len()));
            let bytes = writer.into_vec();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.var_uint(), Ok(value));
            prop_assert_eq!(reader.var_octets(), Ok(octets.as_slice()));
            prop_assert!(reader.is_empty());
        }

        /// An encoding that is accepted is the only encoding of its value.
        #[test]
        fn what_is_read_is_canonical(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.var_uint() {
                let used = bytes.len() - reader.rest().len();
                let mut writer = Writer::new();
                writer.var_uint(value);
                prop_assert_eq!(writer.as_slice(), &bytes[..used]);
            }
        }
    }
}
