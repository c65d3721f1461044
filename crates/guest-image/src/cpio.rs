//! Writes initramfs archives: `newc` cpio as the kernel reads it, without privileges and without a file system.
//!
//! The same calls give the same bytes: times are zero, owners are root, inode numbers count up. Format:
//! Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's sources.

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHARACTER: u32 = 0o020_000;

/// An archive under construction. Parents must be added before their children: the kernel makes no directory that was
/// not listed.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Archive::default()
    }

    /// A directory with the given permission bits. `path` has no leading slash.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.entry(path, TYPE_DIRECTORY | (mode & 0o7777), (0, 0), &[]);
    }

    /// A file with the given permission bits and content, of less than 4 GiB (the format's limit).
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, TYPE_FILE | (mode & 0o7777), (0, 0), content);
    }

    /// A symbolic link to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, TYPE_SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// A character device.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, TYPE_CHARACTER | (mode & 0o7777), (major, minor), &[]);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.header("TRAILER!!!", 0, 0, (0, 0), 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        // A longer content is cut: this writer's callers hold files of a few megabytes.
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        self.header(path, self.entries, mode, device, length);
        self.bytes.extend_from_slice(content.get(..length as usize).unwrap_or(content));
        self.pad();
    }

    fn header(&mut self, path: &str, inode: u32, mode: u32, device: (u32, u32), length: u32) {
        let links = if mode & TYPE_DIRECTORY == TYPE_DIRECTORY { 2 } else { 1 };
        let name_length = path.len() as u32 + 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin, namesize, chksum
        let fields = [inode, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// Names and contents end on multiples of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("etc", 0o755);
        archive.file("etc/name", 0o640, b"odd");
        archive.symlink("link", "etc/name");
        archive.character_device("console", 0o600, 5, 1);
        archive.finish()
    }

    #[test]
    fn the_same_calls_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn headers_are_aligned_and_the_trailer_ends_it() {
        let bytes = sample();
        let mut offset = 0;
        let mut names = Vec::new();
        while offset < bytes.len() {
            let field = |index: usize| {
                let start = offset + 6 + index * 8;
                usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[offset..offset + 6], b"070701");
            let (length, name_length) = (field(6), field(11));
            names.push(String::from_utf8(bytes[offset + 110..offset + 110 + name_length - 1].to_vec()).unwrap());
            offset = (offset + 110 + name_length).next_multiple_of(4) + length.next_multiple_of(4);
        }
        assert_eq!(names, ["etc", "etc/name", "link", "console", "TRAILER!!!"]);
    }

    /// The reference implementation reads it back, where it is installed.
    #[test]
    fn gnu_cpio_lists_it() {
        let child = Command::new("cpio").arg("-tv").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = child else { return };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(output.status.success());
        assert_eq!(lines[0][0], "drwxr-xr-x");
        assert_eq!((lines[1][0], lines[1][4]), ("-rw-r-----", "3"));
        assert_eq!(lines[2].last(), Some(&"etc/name"));
        assert_eq!((lines[3][0], lines[3][4]), ("crw-------", "5,"));
    }
}
