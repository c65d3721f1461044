//! The line with which a program of the host asks the socket device for a port of the guest.

use queztl_vmm::devices::virtio::vsock::parse_connect;

/// Reads `data` as such a line.
pub fn connect(data: &[u8]) {
    if let Some(port) = parse_connect(data) {
        // What was understood is a line of that form.
        let line = String::from_utf8_lossy(data).to_ascii_lowercase();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        assert_eq!(words.len(), 2);
        assert_eq!((words[0], words[1].parse()), ("connect", Ok(port)));
    }
}
