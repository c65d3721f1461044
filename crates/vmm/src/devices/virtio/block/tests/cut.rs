//! A disk replaced by an image that builds on it, under a driver that notices nothing.

use std::path::{Path, PathBuf};

use queztl_storage::image::Parent;
use queztl_storage::open_overlay;

use super::*;

const FEATURES: u64 = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

struct Machine {
    folder: tempfile::TempDir,
    block: Arc<Block>,
    limiter: Arc<Limiter>,
    driver: Driver,
}

/// A disk of pages that hold their number, in `base`.
fn machine(queues: u16) -> Machine {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    let content: Vec<u8> = (0..SECTORS * 512).map(|i| (i / 4096) as u8).collect();
    std::fs::write(&base, content).unwrap();
    let disk = RawConfig { path: base, read_only: false, direct: false, in_order: false };
    let disk = Arc::new(RawFile::open(&disk).unwrap());
    let limiter = Limiter::new(RateLimit::default());
    let block = BlockConfig { disk, serial: String::new(), queues, limiter: limiter.clone() }.build().unwrap();
    let features = FEATURES | if queues > 1 { F_MQ } else { 0 };
    Machine { driver: Driver::ready(block.clone(), features), folder, block, limiter }
}

impl Machine {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes an empty image on top of another.
    fn overlay(&self, name: &str, parent: &str, format: Format, size_bytes: Option<u64>) -> PathBuf {
        let parent = Some(Parent { path: self.path(parent), format });
        let path = self.path(name);
        create(&CreateConfig { path: path.clone(), format: Format::Qcow2, size_bytes, parent }).unwrap();
        path
    }

    fn prepare(&self, overlay: &Path, base: &str) -> Result<Cut, CutError> {
        self.block.prepare_cut(|| Ok(open_overlay(overlay, &self.path(base), false)?))
    }

    fn write(&mut self, queue: usize, sector: u64, data: &[u8]) {
        let (written, parts) =
            self.driver.call(queue, &[Part::Read(&header(1, sector)), Part::Read(data), Part::Write(1)]);
        assert_eq!((written, self.driver.read(parts[2], 1)), (1, vec![0]));
    }

    fn read(&mut self, queue: usize, sector: u64) -> Vec<u8> {
        let (_, parts) = self.driver.call(queue, &[Part::Read(&header(0, sector)), Part::Write(512), Part::Write(1)]);
        assert_eq!(self.driver.read(parts[2], 1), [0]);
        self.driver.read(parts[1], 512)
    }
}

fn open(path: &Path, format: Format, read_only: bool) -> Result<Arc<dyn Disk>, queztl_storage::Error> {
    let (path, format, backing) = (path.to_path_buf(), Some(format), Default::default());
    open_disk(&ImageConfig { path, format, read_only, backing, direct: false, in_order: false })
}

#[test]
fn every_queue_of_a_raw_disk_goes_on_with_the_overlay_and_the_file_below_never_changes_again() {
    let mut m = machine(3);
    m.write(1, 0, &[0xaa; 512]);
    let overlay = m.overlay("overlay", "base", Format::Raw, None);

    m.prepare(&overlay, "base").unwrap().commit().unwrap();

    let frozen = std::fs::read(m.path("base")).unwrap();
    for queue in 0..3 {
        let sector = 16 * queue as u64;
        m.write(queue, sector + 8, &[queue as u8 + 1; 512]);
        assert_eq!(m.read(queue, 0), [0xaa; 512]);
        assert_eq!(m.read(queue, sector + 8), [queue as u8 + 1; 512]);
        assert_eq!(m.read(queue, 4088), [(4088 / 8) as u8; 512]);
    }
    assert!(std::fs::read(m.path("base")).unwrap() == frozen);
    // Others may read it, and nobody may write to it while an image builds on it.
    open(&m.path("base"), Format::Raw, true).unwrap();
    assert!(matches!(open(&m.path("base"), Format::Raw, false), Err(queztl_storage::Error::Locked { .. })));
    assert!(matches!(open(&overlay, Format::Qcow2, true), Err(queztl_storage::Error::Locked { .. })));
}

#[test]
fn a_qcow2_disk_is_cut_again_and_again() {
    let mut m = machine(2);
    let (mut below, mut format) = ("base".to_owned(), Format::Raw);
    for layer in 0..5u8 {
        m.write(usize::from(layer % 2), u64::from(layer) * 8, &[0xc0 + layer; 512]);
        let name = format!("layer{layer}");
        let overlay = m.overlay(&name, &below, format, None);
        m.prepare(&overlay, &below).unwrap().commit().unwrap();
        (below, format) = (name, Format::Qcow2);
    }
    for layer in 0..5u8 {
        assert_eq!(m.read(0, u64::from(layer) * 8), [0xc0 + layer; 512]);
    }
    // The layer below the last is closed, whole, and free to be read.
    m.driver.reset();
    let disk = open(&m.path("layer3"), Format::Qcow2, true).unwrap();
    assert!(!disk.extent(4 * 4096).unwrap().zeroes);
}

#[test]
fn a_cut_that_is_dropped_leaves_the_old_disk_at_work_and_locked() {
    let mut m = machine(1);
    let overlay = m.overlay("overlay", "base", Format::Raw, None);
    let cut = m.prepare(&overlay, "base").unwrap();
    open(&m.path("base"), Format::Raw, true).unwrap();

    drop(cut);

    m.write(0, 8, &[0x77; 512]);
    assert_eq!(std::fs::read(m.path("base")).unwrap()[8 * 512..9 * 512], [0x77; 512]);
    assert!(matches!(open(&m.path("base"), Format::Raw, true), Err(queztl_storage::Error::Locked { .. })));
}

#[test]
fn images_that_cannot_follow_the_disk_are_refused_and_it_goes_on() {
    let mut m = machine(1);
    let smaller = m.overlay("smaller", "base", Format::Raw, Some(4096));
    std::fs::copy(m.path("base"), m.path("other")).unwrap();
    let stranger = m.overlay("stranger", "other", Format::Raw, None);
    let missing = m.path("missing");
    for (overlay, sentence) in [
        (&smaller, "the disk has 2097152 bytes and the image that is to follow it 4096"),
        (&stranger, "does not build on"),
        (&missing, "does not exist"),
    ] {
        let error = m.prepare(overlay, "base").err().unwrap().to_string();
        assert!(error.contains(sentence), "{error}");
        m.write(0, 8, &[0x31; 512]);
    }
    assert_eq!(m.read(0, 8), [0x31; 512]);
}

#[test]
fn a_read_only_disk_is_not_cut() {
    let s = setup_with(true, F_FLUSH | F_RO, 1);
    let config = RawConfig { path: s.file.path().to_path_buf(), read_only: true, direct: false, in_order: false };
    let disk = Arc::new(RawFile::open(&config).unwrap());
    let limiter = Limiter::new(RateLimit::default());
    let block = BlockConfig { disk, serial: String::new(), queues: 1, limiter }.build().unwrap();
    let cut = block.prepare_cut::<CutError>(|| panic!("opened"));
    assert!(matches!(cut.err(), Some(CutError::ReadOnly)));
}

#[test]
fn requests_that_wait_for_the_rate_limit_or_in_the_ring_are_carried_out_on_the_new_disk() {
    let mut m = machine(1);
    let one = Rate { per_second: NEXT_TO_NOTHING, burst: 1 };
    m.limiter.set(RateLimit { bytes: None, requests: Some(one) });
    m.driver.call(0, &[Part::Read(&header(4, 0)), Part::Write(1)]);
    m.driver.send(0, &[Part::Read(&header(1, 8)), Part::Read(&[0x44; 512]), Part::Write(1)]);
    m.driver.kick(0);
    let limiter = m.limiter.clone();
    m.driver.wait_for("throttling", |_| (limiter.waits() > 0).then_some(()));
    // Nobody tells the device of this one.
    m.driver.send(0, &[Part::Read(&header(1, 16)), Part::Read(&[0x45; 512]), Part::Write(1)]);
    let before = std::fs::read(m.path("base")).unwrap();
    let overlay = m.overlay("overlay", "base", Format::Raw, None);

    m.prepare(&overlay, "base").unwrap().commit().unwrap();
    m.limiter.set(RateLimit::default());

    m.driver.wait(0);
    m.driver.wait(0);
    assert_eq!([m.read(0, 8), m.read(0, 16)], [[0x44; 512], [0x45; 512]]);
    assert!(std::fs::read(m.path("base")).unwrap() == before);
}

#[test]
fn a_disk_whose_driver_is_not_ready_is_cut_too() {
    let mut m = machine(1);
    m.driver.reset();
    let overlay = m.overlay("overlay", "base", Format::Raw, None);
    m.prepare(&overlay, "base").unwrap().commit().unwrap();
    m.driver.start(FEATURES);
    m.write(0, 8, &[0x21; 512]);
    assert_ne!(std::fs::read(m.path("base")).unwrap()[8 * 512..9 * 512], [0x21; 512]);
}

#[test]
fn a_broken_device_stays_broken_until_its_driver_resets_it() {
    let mut m = machine(1);
    m.driver.offer(0, 60000);
    m.driver.kick(0);
    m.driver.wait_broken();
    let overlay = m.overlay("overlay", "base", Format::Raw, None);
    m.prepare(&overlay, "base").unwrap().commit().unwrap();
    assert_eq!(m.driver.status() & 64, 64);
    m.driver.reset();
    m.driver.start(FEATURES);
    assert_eq!(m.read(0, 4088), [(4088 / 8) as u8; 512]);
}
