//! Any sequence of writes, freezes, forks, discards and snapshots, compared with a model.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::{GuestRam, LayerId, MemoryImage, MemoryTable, PAGE_SIZE, Pages, RamConfig, RamNode};

const PAGES: u64 = 512 + 16;
const RAMS: usize = 6;

fn config() -> RamConfig {
    let node = |pages| RamNode { bytes: pages * PAGE_SIZE, host_node: None };
    RamConfig { nodes: vec![node(512), node(16)], pages: Pages::Host }
}

/// The number in each page.
type Contents = Vec<u64>;

struct Machine {
    ram: GuestRam,
    contents: Contents,
    /// What discarded pages may hold.
    before: Vec<Contents>,
    /// The chain of files that it can be restored from, and what it held then.
    chain: Vec<(std::fs::File, MemoryTable)>,
    saved: Contents,
}

#[derive(Debug, Clone)]
enum Step {
    Write { machine: usize, page: u64, count: u64, value: u64 },
    Scatter { machine: usize, stride: u64, value: u64 },
    Discard { machine: usize, page: u64, count: u64 },
    Freeze { machine: usize },
    Fork { image: usize, userfault: bool },
    Snapshot { machine: usize, full: bool },
    Restore { machine: usize },
    Reclaim { machine: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let machine = 0..RAMS;
    let step = prop_oneof![
        6 => (machine.clone(), 0..PAGES, 1..40_u64, any::<u64>())
            .prop_map(|(machine, page, count, value)| Step::Write { machine, page, count, value }),
        2 => (machine.clone(), 2..9_u64, any::<u64>())
            .prop_map(|(machine, stride, value)| Step::Scatter { machine, stride, value }),
        2 => (machine.clone(), 0..PAGES, 1..40_u64)
            .prop_map(|(machine, page, count)| Step::Discard { machine, page, count }),
        4 => machine.clone().prop_map(|machine| Step::Freeze { machine }),
        3 => (0..8_usize, any::<bool>()).prop_map(|(image, userfault)| Step::Fork { image, userfault }),
        2 => (machine.clone(), any::<bool>()).prop_map(|(machine, full)| Step::Snapshot { machine, full }),
        1 => machine.clone().prop_map(|machine| Step::Restore { machine }),
        1 => machine.prop_map(|machine| Step::Reclaim { machine }),
    ];
    prop::collection::vec(step, 1..40)
}

struct World {
    machines: Vec<Machine>,
    images: Vec<(MemoryImage, Contents)>,
}

impl World {
    fn new() -> World {
        let first = Machine::new(GuestRam::with(&config()).unwrap(), vec![0; PAGES as usize]);
        World { machines: vec![first], images: Vec::new() }
    }

    fn machine(&mut self, number: usize) -> &mut Machine {
        let count = self.machines.len();
        &mut self.machines[number % count]
    }

    fn add(&mut self, machine: Machine) {
        if self.machines.len() == RAMS {
            self.machines.remove(1);
        }
        self.machines.push(machine);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Write { machine, page, count, value } => {
                let machine = self.machine(machine);
                (page..PAGES.min(page + count)).for_each(|page| machine.write(page, value));
            }
            Step::Scatter { machine, stride, value } => {
                let machine = self.machine(machine);
                (0..PAGES).step_by(stride as usize).for_each(|page| machine.write(page, value));
            }
            Step::Discard { machine, page, count } => self.machine(machine).discard(page, count.min(PAGES - page)),
            Step::Freeze { machine } => {
                let frozen = self.machine(machine).freeze();
                self.images.push(frozen);
            }
            Step::Fork { image, userfault } => {
                let count = self.images.len().max(1);
                if let Some((image, contents)) = self.images.get(image % count) {
                    let ram = GuestRam::from_image(&config(), 0, image).unwrap();
                    if !userfault {
                        ram.backing.do_without_userfault();
                    }
                    self.add(Machine::new(ram, contents.clone()));
                }
            }
            Step::Snapshot { machine, full } => self.machine(machine).snapshot(full),
            Step::Restore { machine } => {
                let restored = self.machine(machine).restore();
                restored.into_iter().for_each(|machine| self.add(machine));
            }
            Step::Reclaim { machine } => drop(self.machine(machine).ram.reclaim().unwrap()),
        }
    }

    fn check(&self) {
        for (number, machine) in self.machines.iter().enumerate() {
            machine.check(number);
        }
    }
}

impl Machine {
    fn new(ram: GuestRam, contents: Contents) -> Machine {
        Machine { ram, before: vec![contents.clone()], contents, chain: Vec::new(), saved: Vec::new() }
    }

    fn write(&mut self, page: u64, value: u64) {
        let bytes: Vec<u8> = value.to_le_bytes().repeat(PAGE_SIZE as usize / 8);
        self.ram.memory().write_slice(&bytes, GuestAddress(page * PAGE_SIZE)).unwrap();
        self.contents[page as usize] = value;
    }

    fn read(&self, page: u64) -> (u64, u64) {
        let read = |offset| self.ram.memory().read_obj::<u64>(GuestAddress(page * PAGE_SIZE + offset)).unwrap();
        (read(0), read(PAGE_SIZE - 8))
    }

    fn check(&self, number: usize) {
        for page in 0..PAGES {
            let expected = self.contents[page as usize];
            assert_eq!(self.read(page), (expected, expected), "page {page} of machine {number}");
        }
    }

    fn discard(&mut self, page: u64, count: u64) {
        crate::discard(self.ram.memory(), GuestAddress(page * PAGE_SIZE), count * PAGE_SIZE).unwrap();
        for page in page..page + count {
            let (found, end) = self.read(page);
            let allowed = found == 0 || self.before.iter().any(|contents| contents[page as usize] == found);
            assert!(allowed && found == end, "page {page} holds {found:x}");
            self.contents[page as usize] = found;
        }
    }

    fn freeze(&mut self) -> (MemoryImage, Contents) {
        let (frozen, settling) = self.ram.freeze().unwrap();
        // While the rest of the work is done, the machine goes on.
        let work = std::thread::spawn(|| settling.run());
        let contents = self.contents.clone();
        (0..PAGES).step_by(5).for_each(|page| self.write(page, page));
        self.check(usize::MAX);
        let image = frozen.image().clone();
        work.join().unwrap();
        self.before.push(contents.clone());
        (image, contents)
    }

    fn snapshot(&mut self, full: bool) {
        let base: Option<LayerId> = self.chain.last().filter(|_| !full).and_then(|(_, table)| table.top());
        let (image, contents) = self.freeze();
        let file = tempfile::tempfile().unwrap();
        let table = image.write(&file, base).unwrap().table;
        table.verify(&file).unwrap();
        if base.is_none() {
            self.chain.clear();
        }
        self.chain.push((file, MemoryTable::from_bytes(&table.to_bytes()).unwrap()));
        self.saved = contents;
    }

    fn restore(&self) -> Option<Machine> {
        let clone = |(file, table): &(std::fs::File, MemoryTable)| (file.try_clone().unwrap(), table.clone());
        let chain: Vec<_> = self.chain.iter().map(clone).collect();
        (!chain.is_empty()).then_some(())?;
        let image = MemoryImage::open(chain.iter().map(clone).collect()).unwrap();
        let ram = GuestRam::from_image(&config(), 0, &image).unwrap();
        let mut machine = Machine::new(ram, self.saved.clone());
        machine.before.extend(self.before.iter().cloned());
        machine.saved.clone_from(&self.saved);
        machine.chain = chain;
        Some(machine)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn nobody_sees_what_others_write(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.check();
        for (image, contents) in &world.images {
            Machine::new(GuestRam::from_image(&config(), 0, image).unwrap(), contents.clone()).check(usize::MAX);
        }
    }
}

/// Threads go on writing while a layer is filled, as vCPUs do; the image has what was there before, RAM what came after.
#[test]
fn writers_go_on_while_a_layer_is_filled() {
    const MANY: u64 = 4096;
    let config = RamConfig::plain(MANY * PAGE_SIZE);
    let ram = GuestRam::with(&config).unwrap();
    if ram.backing.userfault().is_none() {
        eprintln!("skipped: this process may not handle page faults, so layers are filled before writers go on");
    }
    let write = |page: u64, value: u64| ram.memory().write_obj(value, GuestAddress(page * PAGE_SIZE)).unwrap();
    (0..MANY).for_each(|page| write(page, 1));
    ram.freeze().unwrap().1.run();
    (0..MANY).filter(|page| !page.is_multiple_of(3)).for_each(|page| write(page, page % 5));
    let (frozen, settling) = ram.freeze().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| settling.run());
        scope.spawn(|| (0..MANY).rev().for_each(|page| write(page, 7)));
        scope.spawn(|| {
            let read = |page: u64| ram.memory().read_obj::<u64>(GuestAddress(page * PAGE_SIZE)).unwrap();
            let before = |page: u64| if !page.is_multiple_of(3) { page % 5 } else { 1 };
            (0..MANY).for_each(|page| assert!([before(page), 7].contains(&read(page)), "page {page}"));
        });
    });
    let child = GuestRam::from_image(&config, 0, frozen.image()).unwrap();
    let read = |ram: &GuestRam, page: u64| ram.memory().read_obj::<u64>(GuestAddress(page * PAGE_SIZE)).unwrap();
    assert!((0..MANY).all(|page| read(&child, page) == if !page.is_multiple_of(3) { page % 5 } else { 1 }));
    assert!((0..MANY).all(|page| read(&ram, page) == 7));
}

#[test]
fn work_that_is_dropped_is_done_all_the_same() {
    let mut machine = Machine::new(GuestRam::with(&config()).unwrap(), vec![0; PAGES as usize]);
    machine.freeze();
    (0..PAGES).for_each(|page| machine.write(page, 9));
    let (frozen, settling) = machine.ram.freeze().unwrap();
    drop(settling);
    let child = Machine::new(GuestRam::from_image(&config(), 0, frozen.image()).unwrap(), machine.contents.clone());
    child.check(1);
}

/// Many freezes of scattered writes: neither mappings nor files nor memory grow without end.
#[test]
fn images_do_not_fall_into_ever_more_pieces() {
    let mut machine = Machine::new(GuestRam::with(&config()).unwrap(), vec![0; PAGES as usize]);
    for round in 1..200 {
        (0..PAGES).filter(|page| (page * 7 + round).is_multiple_of(11)).for_each(|page| machine.write(page, round));
        machine.ram.freeze().unwrap().1.run();
        machine.ram.reclaim().unwrap();
    }
    machine.check(0);
    let files = machine.ram.backing.state().image.parts().0.len();
    let allocated = machine.ram.allocated().unwrap();
    assert!(files <= 64, "{files} files");
    assert!(allocated.shared <= PAGES * PAGE_SIZE, "{allocated:?}");
}

#[test]
fn reclaiming_frees_frozen_pages_that_only_this_machine_had() {
    let mut machine = Machine::new(GuestRam::with(&config()).unwrap(), vec![0; PAGES as usize]);
    (0..PAGES).for_each(|page| machine.write(page, 1));
    let (frozen, settling) = machine.ram.freeze().unwrap();
    settling.run();
    (0..100).for_each(|page| machine.write(page, 2));
    assert_eq!(machine.ram.reclaim().unwrap(), 0, "somebody has the image");
    drop(frozen);
    assert_eq!(machine.ram.reclaim().unwrap(), 100 * PAGE_SIZE);
    machine.check(0);
    let (frozen, settling) = machine.ram.freeze().unwrap();
    settling.run();
    drop(frozen.image().parts());
    drop(frozen);
    (0..200).for_each(|page| machine.write(page, 3));
    assert_eq!(machine.ram.reclaim().unwrap(), 0, "others have the files");
    machine.check(0);
}
