//! Values of the options that say which pages, nodes and processors a machine is made of: `--memory`, `--numa`, `--pin`.

use queztl_vmm::config::{NumaNode, Pages, Pin};

use crate::values;

/// A list names at most this many numbers: more than any machine has of anything.
const MAX_NUMBERS: usize = 4096;

/// `hugepages=2M`, `hugepages=thp` or `hugepages=none`.
pub fn memory(text: &str) -> Result<Pages, String> {
    match text.split_once('=') {
        Some(("hugepages", "none")) => Ok(Pages::Host),
        Some(("hugepages", "thp")) => Ok(Pages::Transparent),
        Some(("hugepages", "2M" | "2MB" | "2MiB")) => Ok(Pages::Huge2M),
        Some(("hugepages", "1G" | "1GB" | "1GiB")) => {
            Err("huge pages are of 2 MiB here, never of 1 GiB: what a guest gives back \
                and what is hot-plugged comes in blocks of 2 MiB; write hugepages=2M"
                .to_string())
        }
        _ => Err(format!("'{text}' says nothing of memory: write hugepages=2M, hugepages=thp or hugepages=none")),
    }
}

/// A NUMA node as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaArg {
    /// Its number, if given.
    pub number: Option<u32>,
    pub node: NumaNode,
}

/// `cpus=LIST,ram=SIZE[,node=N][,host-node=N][,distances=[NODE@DISTANCE,…]]`.
pub fn numa(text: &str) -> Result<NumaArg, String> {
    let mut arg = NumaArg { number: None, node: NumaNode::default() };
    for part in split_outside_brackets(text)? {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let node = &mut arg.node;
        match name {
            "node" => arg.number = Some(number(value)?),
            "cpus" => node.vcpus.extend(numbers(value)?),
            "ram" => node.ram_bytes = values::size(value)?,
            "host-node" => node.host_node = Some(number(value)?),
            "distances" => node.distances.extend(distances(value)?),
            _ => {
                return Err(format!(
                    "'{part}' is not a part of a NUMA node: there are node=N, cpus=LIST, ram=SIZE, host-node=N and \
                     distances=[NODE@DISTANCE,...]"
                ));
            }
        }
    }
    Ok(arg)
}

/// The nodes in the order of their numbers; those without a number are numbered as they come.
pub fn in_order(args: Vec<NumaArg>) -> Result<Vec<NumaNode>, String> {
    let count = args.len();
    let mut nodes: Vec<Option<NumaNode>> = vec![None; count];
    for (place, arg) in args.into_iter().enumerate() {
        let number = arg.number.map_or(place, |number| number as usize);
        match nodes.get_mut(number) {
            None => return Err(format!("NUMA node {number} is given, but there are {count}: number them from 0 on")),
            Some(Some(_)) => return Err(format!("NUMA node {number} is given twice: number them from 0 on")),
            Some(free) => *free = Some(arg.node),
        }
    }
    Ok(nodes.into_iter().flatten().collect())
}

/// `1@20` or `[1@20,2@30]`.
fn distances(text: &str) -> Result<Vec<(u32, u8)>, String> {
    let wrong = |part: &str| format!("'{part}' is not a distance: write NODE@DISTANCE, such as 1@20");
    let one = |part: &str| {
        let (node, distance) = part.split_once('@').ok_or_else(|| wrong(part))?;
        Ok((number(node)?, distance.parse().map_err(|_| wrong(part))?))
    };
    without_brackets(text).split(',').map(one).collect()
}

/// vCPUs to pin, as they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinArg {
    /// vCPU 0 to the first of these, and so on.
    InOrder(Vec<u32>),
    /// Each of these vCPUs to all of these CPUs.
    Sets(Vec<Pin>),
}

/// `CPUS`, or `VCPUS=CPUS[,VCPUS=CPUS…]`; each a number, a range or a list in brackets.
pub fn pin(text: &str) -> Result<PinArg, String> {
    if !text.contains('=') {
        return numbers(text).map(PinArg::InOrder);
    }
    let mut pins = Vec::new();
    for part in split_outside_brackets(text)? {
        let (vcpus, cpus) = part
            .split_once('=')
            .ok_or_else(|| format!("'{part}' pins nothing: write VCPUS=CPUS, lists in brackets, such as 0-1=[2,4]"))?;
        let cpus = numbers(cpus)?;
        pins.extend(numbers(vcpus)?.into_iter().map(|vcpu| Pin { vcpu, cpus: cpus.clone() }));
    }
    Ok(PinArg::Sets(pins))
}

/// All pins of a machine with `vcpus` vCPUs.
pub fn pins(args: Vec<PinArg>, vcpus: u32) -> Result<Vec<Pin>, String> {
    let mut pins = Vec::new();
    for arg in args {
        match arg {
            PinArg::Sets(sets) => pins.extend(sets),
            PinArg::InOrder(cpus) if cpus.len() as u64 == u64::from(vcpus) => {
                pins.extend((0..).zip(cpus).map(|(vcpu, cpu)| Pin { vcpu, cpus: vec![cpu] }));
            }
            PinArg::InOrder(cpus) => {
                return Err(format!(
                    "--pin names {} CPUs for {vcpus} vCPUs: give one for each, or write VCPUS=CPUS",
                    cpus.len()
                ));
            }
        }
    }
    Ok(pins)
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number"))
}

/// `3`, `0-3` or `[0-1,3]`.
fn numbers(text: &str) -> Result<Vec<u32>, String> {
    let wrong = || format!("'{text}' is not a list of numbers: write 3, 0-3 or [0-1,3]");
    let mut all = Vec::new();
    for part in without_brackets(text).split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
        if first > last || (last - first) as usize >= MAX_NUMBERS - all.len().min(MAX_NUMBERS) {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    Ok(all)
}

fn without_brackets(text: &str) -> &str {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text)
}

/// Splits at the commas that are not inside of brackets.
fn split_outside_brackets(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' if depth == 0 => depth = 1,
            b']' if depth == 1 => depth = 0,
            b'[' | b']' => return Err(format!("the brackets in '{text}' do not match")),
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(format!("the brackets in '{text}' do not match"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_chosen_by_name() {
        assert_eq!(memory("hugepages=2M"), Ok(Pages::Huge2M));
        assert_eq!(memory("hugepages=thp"), Ok(Pages::Transparent));
        assert_eq!(memory("hugepages=none"), Ok(Pages::Host));
        for text in ["", "hugepages", "hugepages=", "hugepages=1G", "thp"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nodes_are_read_with_lists_in_brackets() {
        let arg = numa("node=1,cpus=[0-1,4],ram=256M,host-node=3,distances=[0@21,2@30]").unwrap();
        let node = NumaNode {
            vcpus: vec![0, 1, 4],
            ram_bytes: 256 << 20,
            host_node: Some(3),
            distances: vec![(0, 21), (2, 30)],
        };
        assert_eq!(arg, NumaArg { number: Some(1), node });
        assert_eq!(numa("cpus=0,cpus=2-3").unwrap().node.vcpus, [0, 2, 3]);
        for text in
            ["", "cpus", "cpus=", "cpus=3-1", "cpus=[0", "cpus=0]", "cpus=[[0]]", "ram=much", "cpus=0-4294967295"]
        {
            assert!(numa(text).is_err(), "{text}");
        }
        for text in ["node=-1", "distances=1", "distances=1@256", "colour=red", "host-node=a", "cpus=0,"] {
            assert!(numa(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nodes_are_ordered_by_number() {
        let arg = |number, ram_bytes| NumaArg { number, node: NumaNode { ram_bytes, ..NumaNode::default() } };
        let ram = |args| in_order(args).map(|nodes| nodes.iter().map(|node| node.ram_bytes).collect::<Vec<_>>());
        assert_eq!(ram(vec![arg(Some(1), 7), arg(Some(0), 8)]), Ok(vec![8, 7]));
        assert_eq!(ram(vec![arg(None, 7), arg(None, 8)]), Ok(vec![7, 8]));
        assert!(ram(vec![arg(None, 7), arg(Some(0), 8)]).unwrap_err().contains("twice"));
        assert!(ram(vec![arg(Some(u32::MAX), 7)]).unwrap_err().contains("from 0 on"));
    }

    #[test]
    fn vcpus_are_pinned_in_order_or_by_sets() {
        let one = |vcpu, cpus: &[u32]| Pin { vcpu, cpus: cpus.to_vec() };
        assert_eq!(pins(vec![pin("2-3").unwrap()], 2), Ok(vec![one(0, &[2]), one(1, &[3])]));
        let sets = pins(vec![pin("0=4,1-2=[0,6]").unwrap()], 8);
        assert_eq!(sets, Ok(vec![one(0, &[4]), one(1, &[0, 6]), one(2, &[0, 6])]));
        assert!(pins(vec![pin("0-3").unwrap()], 2).unwrap_err().contains("4 CPUs for 2 vCPUs"));
        for text in ["", "a", "0=", "=0", "0=1,2", "0=[1", "0-"] {
            assert!(pin(text).is_err(), "{text}");
        }
    }
}
