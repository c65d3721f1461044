//! Makes guest RAM: new and empty, or from an image.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use vm_memory::FileOffset;

use crate::backing::{Backing, Wish};
use crate::config::{Error, HUGE_PAGE_SIZE, Pages, RamConfig};
use crate::image::{ImageError, ImageFile, MemoryImage, Segment, Shape};
use crate::layout::{self, HIGH_RAM_START, Piece};
use crate::mapping::{self, Reservation, Sharing};
use crate::plugged::Plugged;
use crate::region::RamRegion;
use crate::tracker::PageTracker;
use crate::{FILE_NAME, GuestMemory, GuestRam, HOTPLUG_ALIGNMENT, Region, placement};

/// The pages of the region for hot-plug. Reserved ones would be taken at once for memory that may never be plugged; its
/// blocks are of their size, so transparent ones fit as well.
fn hotplug_pages(pages: Pages) -> Pages {
    if pages == Pages::Huge2M { Pages::Transparent } else { pages }
}

/// More than any process has addresses for.
const MAX_BYTES: u64 = 1 << 48;

/// Where everything goes.
struct Plan {
    bytes: u64,
    /// The runs of RAM; that for hot-plug is the last one, of a node that is not there.
    pieces: Vec<Piece>,
    hotplug: Option<(u64, u64)>,
    wishes: Vec<Wish>,
    reserved: Reservation,
}

impl Plan {
    fn new(config: &RamConfig, hotplug_bytes: u64) -> Result<Plan, Error> {
        let bytes = config.check()?;
        if bytes > MAX_BYTES || hotplug_bytes > MAX_BYTES {
            let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(Error::AddressSpace { bytes: bytes.max(hotplug_bytes), source });
        }
        if !hotplug_bytes.is_multiple_of(HUGE_PAGE_SIZE) {
            return Err(Error::Unaligned { bytes: hotplug_bytes, unit: HUGE_PAGE_SIZE });
        }
        config.nodes.iter().filter_map(|node| node.host_node).try_for_each(placement::check_host_node)?;
        let sizes: Vec<u64> = config.nodes.iter().map(|node| node.bytes).collect();
        let mut pieces = layout::place(&sizes);
        let wish = |piece: &Piece| Wish { pages: config.pages, host_node: config.nodes[piece.node].host_node };
        let mut wishes: Vec<Wish> = pieces.iter().map(wish).collect();
        let end = pieces.last().map_or(0, |piece| piece.start + piece.len);
        let hotplug_start = end.max(HIGH_RAM_START).next_multiple_of(HOTPLUG_ALIGNMENT);
        let hotplug = (hotplug_bytes > 0).then_some((hotplug_start, hotplug_bytes));
        let end = hotplug.map_or(end, |(start, len)| start.saturating_add(len));
        let reserved = Reservation::new(end).map_err(|source| Error::AddressSpace { bytes, source })?;
        if let Some((start, len)) = hotplug {
            pieces.push(Piece { start, len, node: sizes.len(), offset: 0 });
            wishes.push(Wish { pages: hotplug_pages(config.pages), host_node: None });
        }
        Ok(Plan { bytes, pieces, hotplug, wishes, reserved })
    }

    fn shape(&self) -> Shape {
        Shape::new(self.pieces.iter().map(|piece| (piece.start, piece.len)).collect())
    }

    /// Makes files for all RAM: one for each node, and one for hot-plug.
    fn files(&self) -> Result<Vec<Segment>, Error> {
        let mut files: Vec<Option<Arc<ImageFile>>> = vec![None; self.pieces.last().map_or(0, |piece| piece.node + 1)];
        let mut segments = Vec::with_capacity(self.pieces.len());
        let mut start = 0;
        for (piece, wish) in self.pieces.iter().zip(&self.wishes) {
            let of_node = self.pieces.iter().filter(|other| other.node == piece.node);
            let file = match &files[piece.node] {
                Some(file) => file.clone(),
                None => {
                    let file = new_file(piece.node, of_node.map(|piece| piece.len).sum(), wish.pages)?;
                    files[piece.node].insert(Arc::new(ImageFile::own(file))).clone()
                }
            };
            segments.push(Segment { start, len: piece.len, offset: piece.offset, layer: 0, file });
            start += piece.len;
        }
        Ok(segments)
    }

    /// Maps a run of RAM from a file of this machine's own, as the configuration wishes.
    fn map_shared(&self, number: usize, segment: &Segment) -> Result<(), Error> {
        let (piece, wish) = (&self.pieces[number], &self.wishes[number]);
        let is_huge = wish.pages == Pages::Huge2M;
        let sharing = if is_huge { Sharing::Reserved } else { Sharing::Shared };
        let mapped = self.reserved.map(piece.start, piece.len, segment.file.file.as_fd(), segment.offset, sharing);
        mapped.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOMEM) if is_huge => placement::pool_too_small(self.bytes),
            _ => Error::Map { bytes: self.bytes, source },
        })?;
        self.wish(number)
    }

    /// Asks the host for what is wanted of it for a run of RAM that has been mapped.
    fn wish(&self, number: usize) -> Result<(), Error> {
        let (piece, wish) = (&self.pieces[number], &self.wishes[number]);
        let host = self.reserved.at(piece.start);
        if wish.pages == Pages::Transparent {
            let wanted = placement::want_huge_pages(host, piece.len);
            // Of memory that comes later, nobody has been promised more than the host can do.
            let is_hotplug = self.hotplug.is_some() && number + 1 == self.pieces.len();
            wanted.or_else(|source| if is_hotplug { Ok(()) } else { Err(Error::NoHugePages { source }) })?;
        }
        if let Some(node) = wish.host_node {
            placement::prefer_host_node(host, piece.len, node).map_err(|source| Error::Place { node, source })?;
        }
        Ok(())
    }

    /// Puts together what has been mapped.
    fn finish(self, image: MemoryImage, is_private: bool) -> Result<GuestRam, Error> {
        let Plan { pieces, hotplug, wishes, reserved, .. } = self;
        let segments: Vec<Segment> = if is_private { Vec::new() } else { image.segments().to_vec() };
        let backing = Arc::new(Backing::new(reserved, wishes, image, is_private));
        let (mut maps, mut regions) = (Vec::new(), Vec::new());
        for (number, piece) in pieces.iter().enumerate() {
            let Piece { start, len, node, .. } = *piece;
            let tracker = PageTracker::new(len).map_err(Error::Tracker)?;
            let file = segments.get(number).map(shared_file).transpose();
            let file = file.map_err(|source| Error::Reserve { bytes: len, source })?;
            let is_hotplug = hotplug.is_some_and(|(first, _)| first == start);
            let plugged = is_hotplug.then(|| Arc::new(Plugged::new(start, len)));
            let region = RamRegion::new(backing.clone(), start, len, file, tracker.clone(), plugged.clone());
            maps.push(Arc::new(region));
            let node = if is_hotplug { usize::MAX } else { node };
            regions.push(Region { start, len, node, host: backing.reserved.at(start), tracker, plugged });
        }
        let boot = maps[..maps.len() - usize::from(hotplug.is_some())].to_vec();
        let boot_memory = Arc::new(GuestMemory::from_arc_regions(boot).map_err(Error::Regions)?);
        let memory = Arc::new(GuestMemory::from_arc_regions(maps).map_err(Error::Regions)?);
        Ok(GuestRam { memory, regions, boot_memory, hotplug, backing })
    }
}

/// The file of a run of shared RAM as `vm-memory` passes it on.
fn shared_file(segment: &Segment) -> std::io::Result<FileOffset> {
    Ok(FileOffset::new(segment.file.file.try_clone()?, segment.offset))
}

/// See [`GuestRam::with_hotplug`].
pub(crate) fn empty(config: &RamConfig, hotplug_bytes: u64) -> Result<GuestRam, Error> {
    let plan = Plan::new(config, hotplug_bytes)?;
    let segments = plan.files()?;
    segments.iter().enumerate().try_for_each(|(number, segment)| plan.map_shared(number, segment))?;
    let image = MemoryImage::new(plan.shape(), Vec::new(), segments);
    plan.finish(image, false)
}

/// See [`GuestRam::from_image`].
pub(crate) fn from_image(config: &RamConfig, hotplug_bytes: u64, image: &MemoryImage) -> Result<GuestRam, Error> {
    if config.pages == Pages::Huge2M {
        if image.not_whole().is_some() {
            return Err(ImageError::ArrivingHuge.into());
        }
        let ram = empty(config, hotplug_bytes)?;
        image.check_shape(&ram.backing.shape)?;
        ram.backing.fill(image)?;
        return Ok(ram);
    }
    let plan = Plan::new(config, hotplug_bytes)?;
    image.check_shape(&plan.shape())?;
    for segment in image.segments() {
        let mapped = segment.map(&plan.reserved, image.shape(), Sharing::Private);
        mapped.map_err(|source| Error::Map { bytes: plan.bytes, source })?;
    }
    (0..plan.pieces.len()).try_for_each(|number| plan.wish(number))?;
    if let Some(arriving) = image.not_whole() {
        arriving.watch(&plan.reserved).map_err(|source| Error::Map { bytes: plan.bytes, source })?;
    }
    plan.finish(image.clone(), true)
}

/// The file of node `number`.
fn new_file(number: usize, bytes: u64, pages: Pages) -> Result<File, Error> {
    let is_huge = pages == Pages::Huge2M;
    let name = format!("{FILE_NAME}-{number}");
    mapping::memory_file(&name, bytes, is_huge).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP) if is_huge => Error::NoHugePages { source },
        _ => Error::Reserve { bytes, source },
    })
}
