//! What batches are compressed with.

use std::io::Read;

use bytes::{Buf, Bytes};

use super::{KafkaError, malformed};

/// What a batch may come to, in bytes.
const UNPACKED_MAX: usize = 128 << 20;
/// How Java's library begins blocks of Snappy; others write one block alone.
const SNAPPY_BLOCKS: &[u8] = b"\x82SNAPPY\0";
/// Bytes before those blocks.
const SNAPPY_HEAD: usize = 16;

/// The records of a batch, unpacked by the codec that its attributes name.
pub(super) fn unpack(codec: u16, packed: &Bytes) -> Result<Bytes, KafkaError> {
    match codec {
        0 => Ok(packed.clone()),
        1 => all(flate2::read::MultiGzDecoder::new(packed.as_ref())),
        2 => snappy(packed),
        3 => all(lz4_flex::frame::FrameDecoder::new(packed.as_ref())),
        4 => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(packed.as_ref());
            all(decoder.map_err(|_| malformed("a batch's compression"))?)
        }
        _ => Err(malformed("a compression that is not known")),
    }
}

fn all(unpacked: impl Read) -> Result<Bytes, KafkaError> {
    let mut bytes = Vec::new();
    let limit = UNPACKED_MAX as u64 + 1;
    unpacked
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|_| malformed("a batch's compression"))?;
    if bytes.len() > UNPACKED_MAX {
        return Err(malformed("a batch of more than 128 MiB"));
    }
    Ok(bytes.into())
}

fn snappy(packed: &Bytes) -> Result<Bytes, KafkaError> {
    if !packed.starts_with(SNAPPY_BLOCKS) {
        return block(packed).map(Bytes::from);
    }
    let mut rest = packed.get(SNAPPY_HEAD..).unwrap_or_default();
    let mut bytes = Vec::new();
    while rest.remaining() >= 4 {
        let length = rest.get_u32() as usize;
        let packed = rest
            .split_off(..length)
            .ok_or(malformed("a batch's compression"))?;
        bytes.extend(block(packed)?);
        if bytes.len() > UNPACKED_MAX {
            return Err(malformed("a batch of more than 128 MiB"));
        }
    }
    Ok(bytes.into())
}

fn block(packed: &[u8]) -> Result<Vec<u8>, KafkaError> {
    let bad = |_| malformed("a batch's compression");
    if snap::raw::decompress_len(packed).map_err(bad)? > UNPACKED_MAX {
        return Err(malformed("a batch of more than 128 MiB"));
    }
    snap::raw::Decoder::new()
        .decompress_vec(packed)
        .map_err(bad)
}
