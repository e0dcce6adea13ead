//! The file operations that durability rests on, behind one seam: so a test can count them, and let them fail.

use std::{
    ffi::OsString,
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::Path,
};

/// What changes files. The provided methods are the real thing; a test's disk counts, or fails, and calls them.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Makes a directory and those above it, for their owner alone.
    ///
    /// # Errors
    /// The system's.
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }
    /// Opens a new, empty file for reading and writing. One that is left of an attempt before is emptied.
    ///
    /// # Errors
    /// The system's.
    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.open(path)
    }
    /// Writes all these bytes at this place.
    ///
    /// # Errors
    /// The system's; a part of the bytes may have been written.
    fn write(&self, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }
    /// Returns once what the file holds is on the device (`fdatasync`).
    ///
    /// # Errors
    /// The system's: then nobody knows what is there of what was written since the last one.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
    /// Cuts a file.
    ///
    /// # Errors
    /// The system's.
    fn truncate(&self, file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }
    /// Returns once the names in a directory are on the device.
    ///
    /// # Errors
    /// The system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
    /// Gives a file another name, in place of a file that has it.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    /// Removes a file.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// The operating system's files.
#[derive(Clone, Copy, Debug)]
pub struct Files;

impl Disk for Files {}

/// What the name of an unfinished file ends in.
pub(super) const UNFINISHED: &str = ".new";

/// Puts a whole file in place of the one that is there, if there is one: after a crash it is either, never a part.
pub(super) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = OsString::from(path);
    unfinished.push(UNFINISHED);
    let unfinished = Path::new(&unfinished);
    let file = disk.create(unfinished)?;
    disk.write(&file, 0, bytes)?;
    disk.sync(&file)?;
    disk.rename(unfinished, path)?;
    path.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))
}

/// A disk that counts its syncs, holds them up, and fails when it is told to.
#[cfg(test)]
pub(super) mod faulty {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[derive(Debug, Default)]
    pub(in crate::source::durable) struct Faulty {
        /// Syncs that began, and that ended well.
        pub(in crate::source::durable) begun: AtomicUsize,
        pub(in crate::source::durable) synced: AtomicUsize,
        /// Syncs do not go on while this is set.
        pub(in crate::source::durable) held: AtomicBool,
        /// Writes take half of the bytes and then find the disk full.
        pub(in crate::source::durable) full: AtomicBool,
        /// Syncs fail.
        pub(in crate::source::durable) broken: AtomicBool,
    }

    impl Disk for Faulty {
        fn write(&self, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
            if self.full.load(SeqCst) {
                Files.write(file, at, &bytes[..bytes.len() / 2])?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            Files.write(file, at, bytes)
        }
        fn sync(&self, file: &File) -> io::Result<()> {
            self.begun.fetch_add(1, SeqCst);
            while self.held.load(SeqCst) {
                std::thread::yield_now();
            }
            if self.broken.load(SeqCst) {
                return Err(io::Error::other("the device is gone"));
            }
            Files.sync(file)?;
            self.synced.fetch_add(1, SeqCst);
            Ok(())
        }
    }
}
