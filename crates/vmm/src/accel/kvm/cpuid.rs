//! What a guest on KVM is told about its processor. Two policies, for two kinds of host:
//!
//! - **hardware**: what KVM supports, less what [`State`](queztl_soft_cpu::State) does not carry (AVX-512, protection
//!   keys, AMX, shadow stacks), less performance counters and nested virtualization; topology and paravirtual leaves are
//!   the machine's own, the same as on the software CPU.
//! - **ring 0 emulated by the host's kernel**: the software CPU's description less what KVM does not support, so that
//!   either can finish an instruction for the other. Such hosts cannot keep ring 3 from asking the real processor, so
//!   some put its answers into leaves 7 and 0xd whatever they are told, with features that their emulator does not have
//!   and kernels use all the time (SMAP, FSGSBASE, AVX-512 state). Therefore the highest leaf is 6: a kernel looks no
//!   further. CMPXCHG16B and POPCNT are taken away as well, for the same reason.
//!
//! In both the guest has x2APIC, the TSC deadline timer, the hypervisor bit and KVM's paravirtual clock.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use queztl_soft_cpu::cpuid::{CpuidConfig, CpuidPolicy, CpuidResult, has_subleaves};

/// Feature bits that matter here.
mod bit {
    /// Leaf 1, ECX.
    pub const MONITOR: u32 = 1 << 3;
    pub const VMX: u32 = 1 << 5;
    pub const CX16: u32 = 1 << 13;
    pub const PDCM: u32 = 1 << 15;
    pub const X2APIC: u32 = 1 << 21;
    pub const POPCNT: u32 = 1 << 23;
    pub const TSC_DEADLINE: u32 = 1 << 24;
    pub const HYPERVISOR: u32 = 1 << 31;
    pub const OWN_LEAF1_ECX: u32 = X2APIC | TSC_DEADLINE | HYPERVISOR;
    /// Leaf 1, EDX.
    pub const APIC: u32 = 1 << 9;
    pub const HTT: u32 = 1 << 28;
    /// Leaf 7, EBX: MPX and AVX-512 (F, DQ, IFMA, PF, ER, CD, BW, VL).
    pub const UNCARRIED_LEAF7_EBX: u32 =
        1 << 14 | 1 << 16 | 1 << 17 | 1 << 21 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30 | 1 << 31;
    /// Leaf 7, ECX: AVX-512 (VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ), protection keys, WAITPKG, shadow stacks, LA57, PKS.
    pub const UNCARRIED_LEAF7_ECX: u32 =
        1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 16 | 1 << 31;
    /// Leaf 7, EDX: AVX-512 (4VNNIW, 4FMAPS, VP2INTERSECT, FP16), user interrupts, branch tracking, AMX.
    pub const UNCARRIED_LEAF7_EDX: u32 =
        1 << 2 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25;
    /// Leaf 7 subleaf 1, EAX: AVX512_BF16, FRED, AMX_FP16.
    pub const UNCARRIED_LEAF7_1_EAX: u32 = 1 << 5 | 1 << 17 | 1 << 21;
    /// Leaf 0xd subleaf 1, EAX: XSAVES and XFD.
    pub const UNCARRIED_STATE: u32 = 1 << 3 | 1 << 4;
    /// Leaf 0x8000_0001, ECX: SVM, performance counters.
    pub const SVM: u32 = 1 << 2;
    pub const COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
}

/// The highest basic leaf where ring 0 is emulated.
const LAST_EMULATED: u32 = 6;

/// XCR0: x87, SSE and AVX.
const CARRIED_XCR0: u32 = 7;
/// Bytes of the standard XSAVE area with AVX, and without.
const AREA_WITH_AVX: u32 = 832;
const AREA_WITHOUT_AVX: u32 = 576;

/// One machine's processors.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    leaves: Vec<((u32, u32), CpuidResult)>,
}

impl Policy {
    /// Processors on hardware virtualization, given what KVM supports.
    pub fn hardware(supported: &CpuId, config: &CpuidConfig) -> Policy {
        let own = CpuidPolicy::new(config);
        let mut leaves: Vec<_> = entries(supported)
            .filter(|((leaf, subleaf), _)| is_passed_on(*leaf, *subleaf))
            .map(|(place, result)| (place, restrict(place, result, config)))
            .collect();
        leaves.extend(own.leaves().filter(|((leaf, _), _)| is_own(*leaf)));
        leaves.sort_by_key(|(place, _)| *place);
        Policy { leaves }
    }

    /// Processors whose ring 0 the host's kernel emulates.
    pub fn emulated(supported: &CpuId, config: &CpuidConfig) -> Policy {
        let mut table = CpuidPolicy::new(config);
        let places: Vec<_> =
            table.leaves().map(|(place, _)| place).filter(|place| !is_beyond_emulation(*place)).collect();
        for (leaf, subleaf) in &places {
            let host = find(supported, *leaf, *subleaf);
            table.edit(*leaf, *subleaf, |result| intersect((*leaf, *subleaf), result, host));
        }
        table.edit(0, 0, |leaf| leaf.eax = LAST_EMULATED);
        table.edit(1, 0, |leaf| leaf.ecx &= !(bit::CX16 | bit::POPCNT));
        Policy { leaves: places.into_iter().map(|place| (place, table.get(place.0, place.1))).collect() }
    }

    /// What all vCPUs are told alike.
    pub fn leaves(&self) -> &[((u32, u32), CpuidResult)] {
        &self.leaves
    }

    /// The leaves of vCPU `id`.
    pub fn for_vcpu(&self, id: u32) -> CpuId {
        let entries: Vec<_> = self.leaves.iter().map(|(place, result)| entry(*place, *result, id)).collect();
        CpuId::from_entries(&entries).expect("there are fewer leaves than KVM takes")
    }
}

fn entries(supported: &CpuId) -> impl Iterator<Item = ((u32, u32), CpuidResult)> + '_ {
    supported.as_slice().iter().map(|e| {
        let result = CpuidResult { eax: e.eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx };
        ((e.function, e.index), result)
    })
}

fn find(supported: &CpuId, leaf: u32, subleaf: u32) -> CpuidResult {
    entries(supported).find(|(place, _)| *place == (leaf, subleaf)).map(|(_, result)| result).unwrap_or_default()
}

/// Takes from the software CPU's leaf what KVM does not support.
fn intersect(place: (u32, u32), own: &mut CpuidResult, host: CpuidResult) {
    match place {
        (1, 0) => {
            own.ecx &= host.ecx | bit::OWN_LEAF1_ECX;
            own.edx &= host.edx | bit::APIC | bit::HTT;
        }
        (0x8000_0001, 0) => {
            own.ecx &= host.ecx;
            own.edx &= host.edx;
        }
        (0x8000_0008, 0) => {
            // Guests must not use addresses that the host cannot map.
            own.eax = own.eax & !0xff | (own.eax & 0xff).min((host.eax & 0xff).max(36));
            own.ebx &= host.ebx;
        }
        (0x8000_0021, 0) => own.eax &= host.eax,
        _ => {}
    }
}

/// Basic leaves that guests do not get where ring 0 is emulated.
fn is_beyond_emulation((leaf, _): (u32, u32)) -> bool {
    (LAST_EMULATED + 1..0x4000_0000).contains(&leaf)
}

/// Leaves that describe the machine rather than the host's processor.
fn is_own(leaf: u32) -> bool {
    matches!(leaf, 6 | 0xb | 0x4000_0000..=0x4000_00ff | 0x8000_001d | 0x8000_001e)
}

/// Leaves of KVM's that the guest may see.
fn is_passed_on(leaf: u32, subleaf: u32) -> bool {
    let basic = matches!(leaf, 0..=5 | 7 | 0x15 | 0x16) || (leaf == 0xd && subleaf <= 2);
    let extended = matches!(leaf, 0x8000_0000..=0x8000_0008 | 0x8000_0019 | 0x8000_001a | 0x8000_0021);
    (basic || extended) && !is_own(leaf)
}

/// Takes from KVM's leaf what guests shall not have.
fn restrict(place: (u32, u32), mut leaf: CpuidResult, config: &CpuidConfig) -> CpuidResult {
    let several = config.cores() > 1;
    match place {
        (1, 0) => {
            leaf.ebx = 8 << 8 | config.cores().min(255) << 16;
            leaf.ecx = leaf.ecx & !(bit::MONITOR | bit::VMX | bit::PDCM) | bit::OWN_LEAF1_ECX;
            leaf.edx = leaf.edx & !bit::HTT | bit::APIC | if several { bit::HTT } else { 0 };
        }
        // Caches: the last level is shared by a socket, the others belong to one; one core per APIC id.
        (4, _) if leaf.eax & 0x1f != 0 => {
            let socket = (1 << config.core_bits()) - 1;
            let sharing = if leaf.eax >> 5 & 7 >= 3 { socket } else { 0 };
            leaf.eax = leaf.eax & 0x3fff | sharing.min(0xfff) << 14 | socket.min(0x3f) << 26;
        }
        (5, _) => leaf = CpuidResult::default(),
        (7, 0) => {
            leaf.ebx &= !bit::UNCARRIED_LEAF7_EBX;
            leaf.ecx &= !bit::UNCARRIED_LEAF7_ECX;
            leaf.edx &= !bit::UNCARRIED_LEAF7_EDX;
        }
        (7, 1) => leaf.eax &= !bit::UNCARRIED_LEAF7_1_EAX,
        (0xd, 0) => {
            leaf.eax &= CARRIED_XCR0;
            let area = if leaf.eax & 4 != 0 { AREA_WITH_AVX } else { AREA_WITHOUT_AVX };
            (leaf.ebx, leaf.ecx, leaf.edx) = (area, area, 0);
        }
        (0xd, 1) => {
            leaf.eax &= !bit::UNCARRIED_STATE;
            (leaf.ecx, leaf.edx) = (0, 0);
        }
        (0x8000_0001, 0) => leaf.ecx &= !(bit::SVM | bit::COUNTERS),
        (0x8000_0008, 0) => {
            leaf.ecx = (config.cores() - 1) | config.core_bits() << 12;
        }
        _ => {}
    }
    leaf
}

/// The leaf as vCPU `id` sees it.
fn entry((function, index): (u32, u32), mut leaf: CpuidResult, id: u32) -> kvm_cpuid_entry2 {
    match function {
        1 => leaf.ebx |= (id & 0xff) << 24,
        0xb => {
            leaf.ecx = leaf.ecx & !0xff | index & 0xff;
            leaf.edx = id;
        }
        0x8000_001e => {
            leaf.eax = id;
            leaf.ebx |= id & 0xff;
        }
        _ => {}
    }
    let by_index = has_subleaves(function) || function == 4;
    kvm_cpuid_entry2 {
        function,
        index,
        flags: if by_index { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: CpuidConfig = CpuidConfig { vcpus: 4, socket_vcpus: 4, tsc_hz: 2_000_000_000 };

    /// A KVM that supports everything there could be.
    fn everything() -> CpuId {
        let places = [(0, 0), (1, 0), (4, 0), (4, 3), (7, 0), (7, 1), (0xa, 0), (0xb, 0), (0xd, 0), (0xd, 1), (0xd, 9)];
        let extended = [0x8000_0001, 0x8000_0008, 0x8000_000a, 0x8000_001e, 0x8000_0021].map(|leaf| (leaf, 0));
        let entries: Vec<_> = places
            .into_iter()
            .chain(extended)
            .map(|(function, index)| kvm_cpuid_entry2 {
                function,
                index,
                eax: u32::MAX,
                ebx: u32::MAX,
                ecx: u32::MAX,
                edx: u32::MAX,
                ..Default::default()
            })
            .collect();
        CpuId::from_entries(&entries).unwrap()
    }

    fn of(policy: &Policy, leaf: u32, subleaf: u32, id: u32) -> CpuidResult {
        find(&policy.for_vcpu(id), leaf, subleaf)
    }

    #[test]
    fn hardware_guests_get_no_state_that_cannot_be_moved() {
        let policy = Policy::hardware(&everything(), &CONFIG);
        assert_eq!(of(&policy, 0xd, 0, 0), CpuidResult { eax: 7, ebx: 832, ecx: 832, edx: 0 });
        assert_eq!(of(&policy, 0xd, 9, 0), CpuidResult::default());
        assert_eq!(of(&policy, 7, 0, 0).ebx & bit::UNCARRIED_LEAF7_EBX, 0);
        assert_eq!(of(&policy, 7, 0, 0).ecx & bit::UNCARRIED_LEAF7_ECX, 0);
        assert_eq!(of(&policy, 1, 0, 0).ecx & (bit::VMX | bit::MONITOR), 0);
        assert_eq!(of(&policy, 0x8000_0001, 0, 0).ecx & bit::SVM, 0);
        assert_eq!(of(&policy, 0xa, 0, 0), CpuidResult::default());
    }

    #[test]
    fn an_emulating_host_gets_guests_as_the_software_cpu_has_them_or_less() {
        let own = CpuidPolicy::new(&CONFIG);
        let policy = Policy::emulated(&everything(), &CONFIG);
        assert_eq!(of(&policy, 1, 0, 0).ecx, own.get(1, 0).ecx & !(bit::CX16 | bit::POPCNT));
        assert_eq!(of(&policy, 0, 0, 0).eax, LAST_EMULATED);
        assert_eq!((of(&policy, 7, 0, 0), of(&policy, 0xd, 0, 0)), Default::default());

        let nothing = Policy::emulated(&CpuId::from_entries(&[]).unwrap(), &CONFIG);
        assert_eq!(of(&nothing, 1, 0, 0).ecx, bit::OWN_LEAF1_ECX);
    }

    #[test]
    fn every_vcpu_has_its_own_number_in_every_place() {
        for policy in [Policy::hardware(&everything(), &CONFIG), Policy::emulated(&everything(), &CONFIG)] {
            let leaf1 = of(&policy, 1, 0, 3);
            assert_eq!((leaf1.ebx >> 24, leaf1.ebx >> 16 & 0xff), (3, CONFIG.vcpus));
            assert_eq!(of(&policy, 0x8000_001e, 0, 3).eax, 3);
            let topology = (of(&policy, 0xb, 0, 3).edx, of(&policy, 0xb, 1, 3).edx);
            assert!(topology == (3, 3) || of(&policy, 0, 0, 0).eax < 0xb);
            assert_ne!(leaf1.ecx & bit::HYPERVISOR, 0);
            assert_ne!(leaf1.ecx & bit::X2APIC, 0);
        }
    }
}
