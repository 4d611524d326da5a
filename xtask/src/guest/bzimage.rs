//! Taking the ELF kernel out of a bzImage, so that the VM need not uncompress it at every start.
//!
//! Offsets are those of the kernel's `Documentation/x86/boot.rst`; the payload is "legacy" LZ4:
//! a magic number, then blocks with their compressed length, and at the very end the length of the
//! whole output.

use anyhow::{Context, Result, bail, ensure};

const ELF_MAGIC: &[u8] = b"\x7fELF";
const BOOT_MAGIC_OFFSET: usize = 0x202;
const SETUP_SECTORS_OFFSET: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH_OFFSET: usize = 0x24c;
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
/// The most that one block of legacy LZ4 uncompresses to.
const LZ4_BLOCK_BYTES: usize = 8 << 20;
/// The largest kernel that is believed.
const MAX_KERNEL_BYTES: usize = 512 << 20;

/// The ELF image in a kernel file. A kernel that is ELF already is returned as it is.
pub(super) fn extract(image: Vec<u8>) -> Result<Vec<u8>> {
    if image.starts_with(ELF_MAGIC) {
        return Ok(image);
    }
    ensure!(
        image.get(BOOT_MAGIC_OFFSET..BOOT_MAGIC_OFFSET + 4) == Some(b"HdrS"),
        "neither an ELF kernel nor a bzImage"
    );
    let setup_sectors = match image[SETUP_SECTORS_OFFSET] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(&image, PAYLOAD_OFFSET)?;
    let end = start + u32_at(&image, PAYLOAD_LENGTH_OFFSET)?;
    let payload = image
        .get(start..end)
        .context("the payload reaches beyond the end of the file")?;
    let kernel = lz4_legacy(payload)?;
    ensure!(
        kernel.starts_with(ELF_MAGIC),
        "the payload is not an ELF file"
    );
    Ok(kernel)
}

/// Uncompresses a legacy LZ4 stream that is followed by the length of its output.
fn lz4_legacy(payload: &[u8]) -> Result<Vec<u8>> {
    let stream = payload
        .len()
        .checked_sub(4)
        .context("the payload is empty")?;
    let length = u32_at(payload, stream)?;
    ensure!(
        length <= MAX_KERNEL_BYTES,
        "a kernel of {length} bytes is too large"
    );
    let mut output = vec![0; length];
    let mut written = 0;
    let mut position = 0;
    while position < stream {
        let word = u32_at(payload, position)?;
        position += 4;
        if word == LZ4_LEGACY_MAGIC as usize {
            continue;
        }
        if position == 4 {
            bail!("the payload is not LZ4 (first word {word:#x})");
        }
        let block = payload
            .get(position..position + word)
            .context("a block is cut short")?;
        position += word;
        let room = output.len().min(written + LZ4_BLOCK_BYTES);
        written += lz4_flex::block::decompress_into(block, &mut output[written..room])
            .context("a block is damaged")?;
    }
    ensure!(written == length, "{written} bytes instead of {length}");
    Ok(output)
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<usize> {
    let word = bytes
        .get(offset..offset + 4)
        .context("the file is cut short")?;
    Ok(usize::try_from(u32::from_le_bytes(word.try_into()?))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(kernel: &[u8]) -> Vec<u8> {
        let mut payload = LZ4_LEGACY_MAGIC.to_le_bytes().to_vec();
        for block in kernel.chunks(LZ4_BLOCK_BYTES) {
            let block = lz4_flex::block::compress(block);
            payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            payload.extend(block);
        }
        payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
        let mut image = vec![0; 1024 + 16];
        image[SETUP_SECTORS_OFFSET] = 1;
        image[BOOT_MAGIC_OFFSET..BOOT_MAGIC_OFFSET + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH_OFFSET..PAYLOAD_LENGTH_OFFSET + 4]
            .copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn a_kernel_of_several_blocks_comes_out_whole() {
        let mut kernel = ELF_MAGIC.to_vec();
        kernel.extend((0..LZ4_BLOCK_BYTES + 1000).map(|byte| u8::try_from(byte % 251).unwrap()));
        assert!(extract(bzimage(&kernel)).unwrap() == kernel);
        assert!(extract(kernel.clone()).unwrap() == kernel);
    }

    #[test]
    fn damage_is_refused() {
        let image = bzimage(b"\x7fELF and more");
        for length in 0..image.len() {
            assert!(
                extract(image[..length].to_vec()).is_err(),
                "cut to {length}"
            );
        }
        let mut other = image.clone();
        other[1024 + 16] ^= 1;
        assert!(extract(other).unwrap_err().to_string().contains("not LZ4"));
        let mut wrong_length = image;
        *wrong_length.last_mut().unwrap() = 1;
        assert!(extract(wrong_length).is_err());
    }
}
