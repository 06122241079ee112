//! Reading and writing past the kernel's cache, where the file system can: a spilled object is written once and read
//! once, so a cached copy of it costs a copy's time, and the very memory that is short.
//!
//! Addresses, offsets and lengths must be whole pages then. Large objects lie on pages in the store and go straight
//! between memory and disk; small ones and last parts go by a page-aligned buffer, many at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

pub(super) const PAGE: usize = 4096;
/// The disk gets small objects in pieces of this size.
const BUFFER: usize = 4 << 20;
/// Shorter objects are read by the cache: a page is read from it in less time than a file is opened.
const DIRECT_READ_MIN: usize = 256 << 10;

/// Opens a file that is there for direct I/O; `None` where there is no such thing.
fn open(path: &Path, flags: OFlags) -> Option<File> {
    rustix::fs::open(path, flags | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).ok().map(Into::into)
}

/// Writes objects to a new file, each at its offset (of whole pages), the rest of its last page zeros.
pub(super) fn write(path: &Path, file: &File, objects: &[(u64, &[u8])]) -> io::Result<()> {
    if let Some(direct) = open(path, OFlags::WRONLY) {
        match Writer::new(&direct).all(objects) {
            // The file system took the flag, and wants other alignments.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            other => return other,
        }
    }
    objects.iter().try_for_each(|(offset, bytes)| file.write_all_at(bytes, *offset))
}

/// Reads an object.
pub(super) fn read(path: &Path, file: &File, offset: u64, dst: &mut [u8]) -> io::Result<()> {
    let body = dst.len() / PAGE * PAGE;
    if body >= DIRECT_READ_MIN
        && is_aligned(dst)
        && let Some(direct) = open(path, OFlags::RDONLY)
    {
        let (pages, rest) = dst.split_at_mut(body);
        match direct.read_exact_at(pages, offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return Err(error),
            Ok(()) => return file.read_exact_at(rest, offset + body as u64),
        }
    }
    file.read_exact_at(dst, offset)
}

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(PAGE)
}

struct Writer<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Where in the buffer the first page begins.
    first: usize,
    filled: usize,
    /// Where in the file it belongs.
    at: u64,
}

impl Writer<'_> {
    fn new(file: &File) -> Writer<'_> {
        Writer { file, buffer: Vec::new(), first: 0, filled: 0, at: 0 }
    }

    fn all(mut self, objects: &[(u64, &[u8])]) -> io::Result<()> {
        for (offset, bytes) in objects {
            let body = if is_aligned(bytes) { bytes.len() / PAGE * PAGE } else { 0 };
            // Small ones gather, one page behind the other.
            let body = if body < BUFFER / 4 { 0 } else { body };
            let (pages, rest) = bytes.split_at(body);
            if body > 0 {
                self.flush()?;
                self.file.write_all_at(pages, *offset)?;
            }
            self.gather(*offset + body as u64, rest)?;
        }
        self.flush()
    }

    fn gather(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER + PAGE];
            self.first = self.buffer.as_ptr().align_offset(PAGE).min(PAGE);
        }
        while !bytes.is_empty() {
            if self.filled == BUFFER || offset != self.at + self.filled as u64 {
                self.flush()?;
                self.at = offset;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.filled));
            let from = self.first + self.filled;
            let pages = now.len().next_multiple_of(PAGE);
            self.buffer[from..from + now.len()].copy_from_slice(now);
            self.buffer[from + now.len()..from + pages].fill(0);
            self.filled += pages;
            offset += pages as u64;
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let filled = std::mem::take(&mut self.filled);
        if filled == 0 {
            return Ok(());
        }
        self.file.write_all_at(&self.buffer[self.first..self.first + filled], self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_all_sizes_and_places_come_back() {
        let path = std::env::temp_dir().join(format!("cluster-direct-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let bytes: Vec<u8> = (0..12_000_000_u32).map(|i| (i * 31 % 251) as u8).collect();
        let aligned = bytes.as_ptr().align_offset(PAGE);
        let sizes = [
            1,
            0,
            4096,
            100,
            5_000_000,
            4097,
            70_000,
            BUFFER,
            300_000,
            BUFFER + 1,
            2 * BUFFER,
            9_999_999,
            64,
        ];
        let mut at = 0;
        let mut objects = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            // Every other one lies on no page.
            let from = aligned + number % 2 * 64;
            objects.push((at, &bytes[from..from + size]));
            at += size.max(1).next_multiple_of(PAGE) as u64;
        }
        file.set_len(at).unwrap();
        write(&path, &file, &objects).unwrap();
        assert_eq!(file.metadata().unwrap().len(), at);
        for (offset, bytes) in objects {
            let mut back = vec![1; bytes.len() + PAGE];
            let from = back.as_ptr().align_offset(PAGE);
            for from in [from, 0] {
                let back = &mut back[from..from + bytes.len()];
                read(&path, &file, offset, back).unwrap();
                assert!(back == bytes, "{} bytes at {offset}", bytes.len());
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
}
