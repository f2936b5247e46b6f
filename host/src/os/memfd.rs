//! Anonymous files that a primary hands to its workers: sealed, so that no holder can shrink one under another's
//! mapping or change what was agreed on.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc::MFD_NOEXEC_SEAL;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Native code can have tens of megabytes.
const COPIED_AT_ONCE: usize = 256 * 1024;

/// A file with `contents`, read to their end, that nobody can change any more.
pub(crate) fn constant(name: &CStr, contents: impl Read) -> io::Result<OwnedFd> {
    let mut file = File::from(create(name)?);
    io::copy(&mut BufReader::with_capacity(COPIED_AT_ONCE, contents), &mut file)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// What is in a file that others hold too: they share it and its offset, so it is opened anew. `max` bytes at most.
pub(crate) fn read(fd: &OwnedFd, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file of `len` zero bytes whose contents can change, but not its length.
pub(crate) fn shared(name: &CStr, len: usize) -> io::Result<OwnedFd> {
    let file = File::from(create(name)?);
    file.set_len(len as u64)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

fn create(name: &CStr) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // None is ever started as a program, and with `vm.memfd_noexec=2` the kernel refuses one that could be. A mapping may
    // be executable all the same: the kernel asks the mount about that, not the file's mode.
    match memfd_create(name, flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL)) {
        // The flag is as old as Linux 6.3.
        Err(Errno::EINVAL) => Ok(memfd_create(name, flags)?),
        created => Ok(created?),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_constant_file_cannot_be_changed_whoever_opens_it() {
        let fd = constant(c"test", &b"contents"[..]).unwrap();
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        assert_eq!(std::fs::read(&path).unwrap(), b"contents");
        for (max, part) in [(100, &b"contents"[..]), (100, b"contents"), (4, b"cont")] {
            assert_eq!(read(&fd, max).unwrap(), part);
        }
        let refused =
            |outcome: io::Result<()>| assert_eq!(outcome.unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        let opened = || File::options().read(true).write(true).open(&path);
        refused(opened().and_then(|mut file| file.write_all(b"X")));
        refused(opened().and_then(|file| file.set_len(0)));
        refused(opened().and_then(|file| file.set_len(1 << 20)));
    }
}
