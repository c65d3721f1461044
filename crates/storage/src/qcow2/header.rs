//! What a qcow2 file says of itself, read before anything in it is believed (qcow2 specification, "Header").

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// `QFI\xfb`.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Largest virtual disk that is taken, in bytes.
const MAX_DISK_BYTES: u64 = 64 << 40;
/// Most bytes of a level-one table; QEMU's bound.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Most bytes of a table of reference count blocks; QEMU's bound.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most bytes of a backing file's name (specification).
const MAX_NAME_BYTES: u32 = 1023;
/// Bits of an entry of that table that are an offset.
const REFCOUNT_BLOCK_MASK: u64 = !0x1ff;
const HEADER_BYTES_V2: u32 = 72;
const HEADER_BYTES_V3: u32 = 104;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// The fields of a header that passed its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Size of the virtual disk in bytes.
    pub disk_bytes: u64,
    /// Log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Name of the backing file as it is written down; relative to the image.
    pub backing_file: Option<String>,
    /// Format of the backing file, if it is written down.
    pub backing_format: Option<String>,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Entries of the level-one table and its place in the file.
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    /// Log2 of the bits of a reference count, 0 to 6.
    pub refcount_order: u32,
    /// The image was not closed properly: its reference counts are to be rebuilt.
    pub dirty: bool,
    /// A program that found damage has marked the image.
    pub corrupt: bool,
}

/// Why a file is no qcow2 image that can be used. The sentence goes after the file's name.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("is no qcow2 image (its first bytes say something else)")]
    Magic,
    #[error("is a qcow2 image of version {0}; versions 2 and 3 are known")]
    Version(u32),
    #[error("is encrypted, which is not supported here")]
    Encrypted,
    #[error("needs {0}, which is not supported here: convert it with `qemu-img convert -O qcow2`")]
    Feature(&'static str),
    #[error("has features that this program does not know (bits {0:#x})")]
    UnknownFeatures(u64),
    #[error("is damaged: {0}")]
    Damaged(&'static str),
}

impl Header {
    /// Reads and checks the header at the start of `file`.
    pub fn read(file: &File) -> Result<Header, HeaderError> {
        let mut first = [0; HEADER_BYTES_V3 as usize];
        let got = read_up_to(file, &mut first, 0)?;
        let file_bytes = file.metadata()?.len();
        let fixed = Fixed(&first[..got]);
        if fixed.u32(0) != Some(MAGIC) {
            return Err(HeaderError::Magic);
        }
        let version = fixed.u32(4).ok_or(HeaderError::Damaged("it ends within its header"))?;
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        let header = fixed.header(version).ok_or(HeaderError::Damaged("it ends within its header"))?;
        let header = header?;
        header.check_tables(file_bytes)?;
        header.with_names(file, &fixed)
    }

    /// Refuses an image in which nothing can be allocated: its first clusters, the header among them, must be counted. The
    /// library would count them in a block of its own at offset 0, which stands for none, and go on making such blocks.
    pub(crate) fn check_writable(&self, file: &File) -> Result<(), HeaderError> {
        let mut entry = [0; 8];
        read_up_to(file, &mut entry, self.refcount_table_offset)?;
        match u64::from_be_bytes(entry) & REFCOUNT_BLOCK_MASK {
            0 => Err(HeaderError::Damaged("it does not count its own header")),
            _ => Ok(()),
        }
    }

    /// Cluster size in bytes.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk that one entry of the level-one table stands for.
    pub fn l1_span_bytes(&self) -> u64 {
        self.cluster_bytes() * (self.cluster_bytes() / 8)
    }

    fn check_tables(&self, file_bytes: u64) -> Result<(), HeaderError> {
        let aligned = |offset: u64| offset.is_multiple_of(self.cluster_bytes());
        let inside = |offset: u64, bytes: u64| offset.checked_add(bytes).is_some_and(|end| end <= file_bytes);
        if self.disk_bytes > MAX_DISK_BYTES {
            return Err(HeaderError::Damaged("its disk is larger than 64 TiB"));
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        let needed = self.disk_bytes.div_ceil(self.l1_span_bytes());
        if l1_bytes > MAX_L1_BYTES || u64::from(self.l1_entries) < needed {
            return Err(HeaderError::Damaged("the size of its level-one table does not fit its disk"));
        }
        if !aligned(self.l1_offset) || !inside(self.l1_offset, l1_bytes) {
            return Err(HeaderError::Damaged("its level-one table lies outside the file"));
        }
        let table_bytes = u64::from(self.refcount_table_clusters) * self.cluster_bytes();
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES.max(self.cluster_bytes()) || table_bytes == 0 {
            return Err(HeaderError::Damaged("the size of its reference count table is impossible"));
        }
        // The table's last cluster may be shorter in the file, since what lies behind its end reads as zeroes.
        if !aligned(self.refcount_table_offset) || !inside(self.refcount_table_offset, 8) {
            return Err(HeaderError::Damaged("its reference count table lies outside the file"));
        }
        Ok(())
    }

    fn with_names(mut self, file: &File, fixed: &Fixed<'_>) -> Result<Header, HeaderError> {
        let (offset, bytes) = (fixed.u64(8).unwrap_or(0), fixed.u32(16).unwrap_or(0));
        if offset != 0 && bytes != 0 {
            let end = offset.checked_add(u64::from(bytes));
            if bytes > MAX_NAME_BYTES || end.is_none_or(|end| end > self.cluster_bytes()) {
                return Err(HeaderError::Damaged("the name of its backing file lies outside the header"));
            }
            self.backing_file = Some(read_text(file, offset, bytes)?);
        }
        let mut at = u64::from(if self.version == 2 { HEADER_BYTES_V2 } else { fixed.u32(100).unwrap_or(0) });
        while let Some((kind, bytes)) = self.extension(file, at)? {
            if kind == EXTENSION_BACKING_FORMAT {
                if bytes > MAX_NAME_BYTES {
                    return Err(HeaderError::Damaged("the format of its backing file is no name"));
                }
                self.backing_format = Some(read_text(file, at + 8, bytes)?);
            }
            at += 8 + u64::from(bytes).next_multiple_of(8);
        }
        Ok(self)
    }

    /// Kind and length of the header extension at `at`; `None` behind the last.
    fn extension(&self, file: &File, at: u64) -> Result<Option<(u32, u32)>, HeaderError> {
        let mut head = [0; 8];
        if at + 8 > self.cluster_bytes() || read_up_to(file, &mut head, at)? < 8 {
            return Ok(None);
        }
        let fixed = Fixed(&head);
        match (fixed.u32(0), fixed.u32(4)) {
            (Some(EXTENSION_END), _) | (None, _) | (_, None) => Ok(None),
            (Some(kind), Some(bytes)) if at + 8 + u64::from(bytes) <= self.cluster_bytes() => Ok(Some((kind, bytes))),
            _ => Err(HeaderError::Damaged("an extension of its header runs out of the header")),
        }
    }
}

/// The first bytes of the file: big-endian fields at fixed places.
struct Fixed<'a>(&'a [u8]);

impl Fixed<'_> {
    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }

    /// The header's numbers; `None` if there are too few bytes.
    fn header(&self, version: u32) -> Option<Result<Header, HeaderError>> {
        let (incompatible, refcount_order, header_bytes) = match version {
            2 => (0, 4, HEADER_BYTES_V2),
            _ => (self.u64(72)?, self.u32(96)?, self.u32(100)?),
        };
        let cluster_bits = self.u32(20)?;
        let header = Header {
            version,
            disk_bytes: self.u64(24)?,
            cluster_bits,
            backing_file: None,
            backing_format: None,
            snapshots: self.u32(60)?,
            l1_entries: self.u32(36)?,
            l1_offset: self.u64(40)?,
            refcount_table_offset: self.u64(48)?,
            refcount_table_clusters: self.u32(56)?,
            refcount_order,
            dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
            corrupt: incompatible & INCOMPATIBLE_CORRUPT != 0,
        };
        let crypt_method = self.u32(32)?;
        Some(match () {
            () if !(9..=21).contains(&cluster_bits) => Err(HeaderError::Damaged("its cluster size is impossible")),
            () if refcount_order > 6 => Err(HeaderError::Damaged("its reference counts are impossibly wide")),
            () if header_bytes < HEADER_BYTES_V2 || u64::from(header_bytes) > header.cluster_bytes() => {
                Err(HeaderError::Damaged("the length of its header is impossible"))
            }
            () if crypt_method != 0 => Err(HeaderError::Encrypted),
            () => check_features(incompatible).map(|()| header),
        })
    }
}

fn check_features(incompatible: u64) -> Result<(), HeaderError> {
    let unsupported = [
        (INCOMPATIBLE_DATA_FILE, "an external data file"),
        (INCOMPATIBLE_COMPRESSION, "a compression other than zlib"),
        (INCOMPATIBLE_EXTENDED_L2, "subclusters"),
    ];
    for (bit, what) in unsupported {
        if incompatible & bit != 0 {
            return Err(HeaderError::Feature(what));
        }
    }
    match incompatible & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT) {
        0 => Ok(()),
        unknown => Err(HeaderError::UnknownFeatures(unknown)),
    }
}

/// Fills `buffer` from `offset` as far as the file goes.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn read_text(file: &File, offset: u64, bytes: u32) -> Result<String, HeaderError> {
    let mut text = vec![0; bytes as usize];
    if read_up_to(file, &mut text, offset)? < text.len() {
        return Err(HeaderError::Damaged("it ends within its header"));
    }
    String::from_utf8(text).map_err(|_| HeaderError::Damaged("a name in its header is not UTF-8"))
}
