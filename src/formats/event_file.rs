//! TensorBoard event files: a TFRecord stream of `Event` messages (tensorflow/core/util/event.proto,
//! tensorflow/core/lib/io/record_writer.h), written by hand because scalars need five fields of it.

use super::atomic::{create_folder, write_atomic};
use super::metrics::read_log;
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// An event file, open at its end.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens the event file in `folder`, or begins one. Events of steps beyond `after`, and a
    /// damaged end, are removed.
    ///
    /// # Errors
    /// What the operating system says, with the file.
    pub fn open(folder: &Path, after: u64) -> Result<Self> {
        create_folder(folder)?;
        // TensorBoard takes every file whose name contains `tfevents`.
        let path = folder.join("events.out.tfevents.0000000000.cyanea");
        let old = read_log(&path)?.unwrap_or_default();
        let mut kept = Vec::with_capacity(old.len());
        let mut rest = old.as_slice();
        while let Some((event, next)) = split_record(rest) {
            if step_of(event).is_some_and(|step| step <= after) {
                kept.extend_from_slice(&rest[..rest.len() - next.len()]);
            }
            rest = next;
        }
        if kept.is_empty() {
            // The first event says which version of the format follows.
            let mut event = Vec::new();
            put_double(&mut event, 1, 0.0);
            put_bytes(&mut event, 3, b"brain.Event:2");
            kept = record(&event);
        }
        if kept != old {
            write_atomic(&path, |out| out.write_all(&kept))?;
        }
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(|error| Error::io(&path, error))?;
        Ok(EventFile { path, file })
    }

    /// Appends one event with all values. `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// What the operating system says, with the file.
    pub fn write(&mut self, wall_time: f64, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (name, value) in values {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, name.as_bytes());
            put_varint(&mut entry, key(2, FIXED32));
            entry.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, wall_time);
        put_varint(&mut event, key(2, VARINT));
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.file.write_all(&record(&event)).map_err(|error| Error::io(&self.path, error))
    }
}

// Wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

fn key(field: u64, wire: u64) -> u64 {
    field << 3 | wire
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_varint(out, key(field, FIXED64));
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, key(field, LENGTH));
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// A TFRecord: length, its checksum, data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

/// CRC-32C, rotated and offset so that a checksum of data with checksums in it stays meaningful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The first record's data and what follows it; `None` at the end, or where the record is damaged.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != masked_crc(length) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (data, rest) = rest.split_at_checked(length)?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*crc) == masked_crc(data)).then_some((data, rest))
}

/// The step of an event: 0 where it has none, `None` where the message is damaged.
fn step_of(mut event: &[u8]) -> Option<u64> {
    let mut step = 0;
    while !event.is_empty() {
        let field = take_varint(&mut event)?;
        match field & 7 {
            VARINT => {
                let value = take_varint(&mut event)?;
                if field >> 3 == 2 {
                    step = value;
                }
            }
            FIXED64 => event = event.get(8..)?,
            FIXED32 => event = event.get(4..)?,
            LENGTH => {
                let length = usize::try_from(take_varint(&mut event)?).ok()?;
                event = event.get(length..)?;
            }
            _ => return None,
        }
    }
    Some(step)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(folder: &Path) -> Vec<u64> {
        let bytes = std::fs::read(folder.join("events.out.tfevents.0000000000.cyanea")).unwrap();
        let (mut steps, mut rest) = (Vec::new(), bytes.as_slice());
        while let Some((event, next)) = split_record(rest) {
            steps.push(step_of(event).unwrap());
            rest = next;
        }
        assert!(rest.is_empty(), "damaged end");
        steps
    }

    #[test]
    fn a_scalar_event_has_the_bytes_of_the_format() {
        // RFC 3720, B.4, and the mask of record_writer.h.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(
            masked_crc(&[0; 32]),
            0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::open(folder.path(), 0).unwrap();
        file.write(1.0, 300, &[("a", 0.5)]).unwrap();
        let bytes = std::fs::read(&file.path).unwrap();
        let (version, rest) = split_record(&bytes).unwrap();
        assert_eq!(&version[9..], b"\x1a\x0dbrain.Event:2");
        let (event, rest) = split_record(rest).unwrap();
        assert!(rest.is_empty());
        let want = [
            &b"\x09"[..],
            &1.0_f64.to_le_bytes(),
            b"\x10\xac\x02",
            b"\x2a\x0a",
            b"\x0a\x08",
            b"\x0a\x01a",
            b"\x15",
            &0.5_f32.to_le_bytes(),
        ];
        assert_eq!(event, want.concat());
    }

    #[test]
    fn a_resumed_file_goes_on_after_the_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::open(folder.path(), 0).unwrap();
        for step in 1..=5 {
            file.write(0.0, step, &[("loss", 1.0), ("rate", f64::NAN)]).unwrap();
        }
        // Half a record, as after a crash.
        file.file.write_all(&record(b"\x10\x06")[..9]).unwrap();
        let mut file = EventFile::open(folder.path(), 3).unwrap();
        file.write(0.0, 4, &[]).unwrap();
        assert_eq!(steps(folder.path()), [0, 1, 2, 3, 4]);
        EventFile::open(folder.path(), 0).unwrap();
        assert_eq!(steps(folder.path()), [0]);
    }

    #[test]
    fn damaged_messages_are_dropped_without_a_panic() {
        for event in [&b"\x10"[..], b"\x2a\xff\x01", b"\x09\x00", b"\x13", &[0xff; 12]] {
            assert_eq!(step_of(event), None, "{event:?}");
        }
        assert!(split_record(&record(b"abc")[..17]).is_none());
        let mut lying = u64::MAX.to_le_bytes().to_vec();
        lying.extend(masked_crc(&u64::MAX.to_le_bytes()).to_le_bytes());
        assert!(split_record(&lying).is_none());
    }
}
