//! Unix sockets to listen on: `unix:PATH?mode=0660&group=www`.
//!
//! Without a mode only the owner may connect; with a group alone, its members may too. The umask has no say: what can be
//! reached is in the address.

use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Group;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::{Behind, Entrance, Listener, PROXY_PROTOCOL, behind, listen, remove_socket};
use crate::os::files::Inode;

/// Of the owner alone, and of a group too.
const DEFAULT_MODE: u32 = 0o600;
const DEFAULT_MODE_OF_GROUP: u32 = 0o660;

/// What is behind `unix:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnixAddr {
    pub(super) path: PathBuf,
    mode: Option<u32>,
    group: Option<String>,
}

impl UnixAddr {
    pub(super) fn parse(path: &str, options: &[&str]) -> Result<Self, String> {
        if path.is_empty() {
            return Err("expected a path after unix:".into());
        }
        let mut address = Self { path: path.into(), mode: None, group: None };
        for option in options {
            let is_new = match option.split_once('=') {
                Some(("mode", mode)) => address.mode.replace(parse_mode(mode)?).is_none(),
                Some(("group", group)) if !group.is_empty() => address.group.replace(group.into()).is_none(),
                _ => {
                    return Err(format!(
                        "'{option}' is not mode=MODE, group=GROUP or {PROXY_PROTOCOL}; write unix:{path}?mode=0660&group=www"
                    ));
                }
            };
            if !is_new {
                return Err(format!("'{option}' is given twice"));
            }
        }
        Ok(address)
    }

    fn mode(&self) -> u32 {
        self.mode.unwrap_or(if self.group.is_some() { DEFAULT_MODE_OF_GROUP } else { DEFAULT_MODE })
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let is_octal = (3..=4).contains(&text.len()) && text.chars().all(|digit| digit.is_digit(8));
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| is_octal && mode <= 0o777);
    mode.ok_or_else(|| format!("'{text}' is not a valid socket mode; write three or four octal digits, such as 0660"))
}

pub(super) fn bind(address: &UnixAddr, entrance: Entrance, backlog: i32) -> io::Result<Listener> {
    let path = &address.path;
    let group = address.group.as_deref().map(find_group).transpose()?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file is made with the mode of the socket, less the umask: nobody gets in before the group is set.
    fchmod(&socket, Mode::from_bits_truncate(DEFAULT_MODE))?;
    let to = SockAddr::unix(path)?;
    match socket.bind(&to) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && remove_if_stale(path)? => socket.bind(&to)?,
        bound => bound?,
    }
    // At once: a socket that does not listen looks like a leftover to others.
    listen(SockRef::from(&socket), backlog)?;
    let inode = Inode::at(path).ok_or(io::ErrorKind::NotFound)?;
    // From here on it removes the file when something fails.
    let listener = Listener {
        socket: socket.into(),
        entrance,
        url: format!("unix:{}", path.display()),
        socket_file: Some((path.into(), inode)),
    };
    if let Some((name, group)) = group {
        lchown(path, None, Some(group)).map_err(|error| {
            let to_whom = "only root and members of the group may do that";
            io::Error::other(format!("cannot give it to the group {name}: {error}; {to_whom}"))
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(address.mode()))?;
    Ok(listener)
}

/// By name or by number.
fn find_group(name: &str) -> io::Result<(&str, u32)> {
    let found = Group::from_name(name)?.map(|group| group.gid.as_raw()).or_else(|| name.parse().ok());
    Ok((name, found.ok_or_else(|| io::Error::other(format!("there is no group {name}")))?))
}

/// Whether it was a leftover, and is gone. One that another process has put there meanwhile is not.
fn remove_if_stale(path: &Path) -> io::Result<bool> {
    let seen = Inode::at(path);
    let is_leftover = behind(path) == Behind::Nobody && Inode::at(path) == seen;
    if is_leftover {
        remove_socket(path)?;
    }
    Ok(is_leftover)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::Security;
    use super::*;

    const CLEAR: Entrance = Entrance { security: Security::Clear, takes_proxy: false };

    #[test]
    fn mode_and_group_are_in_the_address() {
        let parsed = |text: &str| {
            let (path, options) = text.split_once('?').map_or((text, None), |(path, options)| (path, Some(options)));
            UnixAddr::parse(path, &options.into_iter().flat_map(|options| options.split('&')).collect::<Vec<_>>())
        };
        let parse = |text: &str| {
            let address = parsed(text).unwrap();
            (address.path.display().to_string(), address.mode(), address.group)
        };
        assert_eq!(parse("/run/a"), ("/run/a".into(), 0o600, None));
        assert_eq!(parse("/run/a?mode=0666"), ("/run/a".into(), 0o666, None));
        assert_eq!(parse("a?group=www"), ("a".into(), 0o660, Some("www".into())));
        assert_eq!(parse("a?group=www&mode=770"), ("a".into(), 0o770, Some("www".into())));
        for (text, error) in [
            ("", "expected a path"),
            ("?mode=0660", "expected a path"),
            ("a?", "'' is not mode=MODE"),
            ("a?user=www", "'user=www' is not mode=MODE"),
            ("a?group=", "'group=' is not mode=MODE"),
            ("a?mode=rw", "'rw' is not a valid"),
            ("a?mode=0999", "'0999' is not a valid"),
            ("a?mode=4755", "'4755' is not a valid"),
            ("a?mode=+660", "'+660' is not a valid"),
            ("a?mode=0660&mode=0666", "given twice"),
        ] {
            let said = parsed(text).unwrap_err();
            assert!(said.contains(error), "{text}: {said}");
        }
    }

    #[test]
    fn sockets_have_the_mode_and_the_group_that_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let bind = |options: &[&str]| bind(&UnixAddr::parse(path.to_str().unwrap(), options).unwrap(), CLEAR, 16);
        let group = nix::unistd::getegid().as_raw();
        let of_group = format!("group={group}");
        for (options, mode) in
            [(&[][..], 0o600), (&["mode=0666"], 0o666), (&[&of_group], 0o660), (&["mode=0620", &of_group], 0o620)]
        {
            let listener = bind(options).unwrap();
            let metadata = std::fs::metadata(&path).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (mode, group), "{options:?}");
            drop(listener);
            assert!(!path.exists());
        }
        let error = bind(&["group=no-such-group"]).unwrap_err();
        assert!(error.to_string().contains("there is no group no-such-group") && !path.exists(), "{error}");
    }

    #[test]
    fn the_socket_of_another_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let address = UnixAddr::parse(path.to_str().unwrap(), &[]).unwrap();
        let first = bind(&address, CLEAR, 16).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = bind(&address, CLEAR, 16).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
