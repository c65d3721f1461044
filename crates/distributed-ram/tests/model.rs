//! Every order of events there can be, in a small group: three nodes, few epochs, messages that are lost, late, doubled and
//! reordered, nodes that crash and come back without what they knew, a register whose changes are noticed late, members that
//! take an owner for dead that lives, and owners that hand over and think better of it.

use std::collections::{BTreeMap, BTreeSet};

use queztl_distributed_ram::{
    Answer, Candidate, Epoch, Member, Node, Outcome, Owner, Phase, Promise, Register, Release, Rule, Term, Version,
};
use stateright::{Checker, Model, Property};

const NODES: Node = 3;

/// A group to be explored.
#[derive(Clone)]
struct Group {
    acks: usize,
    /// Bounds: cuts in a term, terms, crashes.
    cuts: u64,
    terms: Term,
    crashes: u8,
    /// It begins with copies everywhere, which takes an exploration further.
    protected: bool,
    /// What is wrong on purpose, to see that the checker sees it.
    fault: Option<Fault>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The register is written before the members have what has left.
    WriteEarly,
    /// A candidate asks too few.
    AskFew,
    /// A member that has lost what it promised does not read the register.
    ForgetPromise,
    /// An owner lets out what fewer have than the rule says.
    ReleaseEarly,
    /// An owner that has consented to hand over goes on without a change of the register.
    GoOnWithoutWord,
    /// An owner hands over to a member that lacks the last cut.
    GiveAnyCopy,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    register: Register,
    /// How often an owner has renewed the value since it had thought better of handing over.
    renewals: u8,
    nodes: Vec<Peer>,
    /// Messages stay, so that each may arrive never, once or many times, at any time.
    network: BTreeSet<Message>,
    /// Epochs of which something has left, with the term that let it out.
    left: BTreeSet<(Term, Epoch)>,
    /// What each term began from.
    bases: BTreeMap<Term, Version>,
    crashes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Peer {
    up: bool,
    owner: Option<Owner>,
    /// It stands still, and has consented that another goes on.
    gives: bool,
    candidate: Option<Candidate>,
    member: Member,
    /// How often it has begun. What was sent to it before does not reach it: connections end with it.
    life: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Message {
    Data {
        to: Node,
        life: u8,
        from: Node,
        version: Version,
        base: Option<Epoch>,
    },
    Acknowledged {
        to: Node,
        from: Node,
        version: Version,
    },
    Fenced {
        to: Node,
        term: Term,
    },
    Ask {
        to: Node,
        from: Node,
        term: Term,
    },
    Promised {
        to: Node,
        from: Node,
        term: Term,
        copy: Option<Version>,
    },
    /// The owner stands still: go on with this copy, if the register still is as it was.
    Take {
        to: Node,
        term: Term,
        from: Node,
        renewals: u8,
        version: Version,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Cut(Node),
    Release(Node),
    Propose(Node),
    Write(Node),
    Adopt(Node),
    Expose(Node),
    Claim(Node),
    TakeOver(Node),
    Crash(Node),
    Restart(Node),
    Retire(Node),
    /// Stands still, and tells a member to go on.
    Give(Node, Node),
    /// Goes on after all.
    TakeBack(Node),
    Deliver(Message),
}

impl World {
    fn peer(&mut self, node: Node) -> &mut Peer {
        &mut self.nodes[node as usize]
    }

    /// Whether a state contains what a term let out of an epoch.
    fn contains(&self, version: Version, left: (Term, Epoch)) -> bool {
        if version.term == left.0 {
            return version.epoch >= left.1;
        }
        let base = self.bases.get(&version.term).copied();
        version.term > left.0 && base.is_some_and(|base| self.contains(base, left))
    }

    fn contains_all(&self, version: Version) -> bool {
        self.left.iter().all(|left| self.contains(version, *left))
    }

    /// Whether an owner could let out now what a successor does not have.
    fn is_beyond(&self, peer: &Peer) -> bool {
        let Some(owner) = peer.owner.as_ref().filter(|_| peer.up) else { return false };
        let mut successors = self.bases.range(owner.term() + 1..).map(|(_, base)| *base);
        match owner.releasable() {
            Release::All => successors.next().is_some(),
            Release::UpTo(epoch) if epoch > self.bases[&owner.term()].epoch => {
                successors.any(|base| !self.contains(base, (owner.term(), epoch)))
            }
            Release::UpTo(_) | Release::Nothing => false,
        }
    }

    fn others(node: Node) -> impl Iterator<Item = Node> {
        (0..NODES).filter(move |other| *other != node)
    }
}

impl Model for Group {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let register = Register::new(0);
        let mut owner = Owner::new(&register, 0);
        let mut member = Member::default();
        let mut known = register.clone();
        if self.protected {
            let (epoch, others) = (owner.cut(), World::others(0).collect::<BTreeSet<_>>());
            owner.propose(Rule { members: others.clone(), acks: self.acks });
            member.staged(owner.version(), None);
            others.iter().for_each(|node| owner.acknowledge(*node, Version { term: 1, epoch }));
            known = register.protect(0, 1, others, self.acks).expect("a rule");
            owner.adopt(&known);
        }
        let peer = |node| Peer {
            up: true,
            owner: (node == 0).then(|| owner.clone()),
            gives: false,
            candidate: None,
            member: if node == 0 { Member::default() } else { member.clone() },
            life: 0,
        };
        let nodes = (0..NODES).map(peer).collect();
        let bases = [(1, Version::default())].into();
        let (network, left) = (BTreeSet::new(), BTreeSet::new());
        vec![World { register: known, renewals: 0, nodes, network, left, bases, crashes: 0 }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for node in 0..NODES {
            self.actions_of(world, node, actions);
        }
        let reaches = |message: &Message| match message {
            Message::Data { to, life, .. } => world.nodes[*to as usize].up && world.nodes[*to as usize].life == *life,
            Message::Acknowledged { to, .. }
            | Message::Fenced { to, .. }
            | Message::Ask { to, .. }
            | Message::Take { to, .. }
            | Message::Promised { to, .. } => world.nodes[*to as usize].up,
        };
        actions.extend(world.network.iter().filter(|message| reaches(message)).cloned().map(Action::Deliver));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        self.step(&mut next, action);
        // What changes nothing need not be looked at again.
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Group>> {
        vec![
            Property::always("an owner that was followed lets out nothing new", |_, world: &World| {
                !world.nodes.iter().any(|peer| world.is_beyond(peer))
            }),
            Property::always("who goes on has all that was let out", |_, world: &World| {
                let begun = |(term, base): (&Term, &Version)| {
                    world.left.iter().filter(|left| left.0 < *term).all(|left| world.contains(*base, *left))
                };
                world.bases.iter().all(begun)
            }),
            Property::always("a protected group has enough copies to go on from", |_, world: &World| {
                let complete = |node: &&Node| {
                    world.nodes[**node as usize].member.copy().is_some_and(|copy| world.contains_all(copy))
                };
                let protected = world.register.phase == Phase::Protected;
                let lost = usize::from(world.crashes);
                !protected || world.register.members.iter().filter(complete).count() + lost >= world.register.acks
            }),
            Property::sometimes("a member goes on", |_, world: &World| world.bases.len() > 1),
            Property::sometimes("an owner hands over", |_, world: &World| {
                world.crashes == 0 && world.register.term > 1 && world.register.phase == Phase::Alone
            }),
            Property::sometimes("protection comes back after a failure", |_, world: &World| {
                world.register.term > 1 && world.register.phase == Phase::Protected
            }),
        ]
    }
}

impl Group {
    fn actions_of(&self, world: &World, node: Node, actions: &mut Vec<Action>) {
        let peer = &world.nodes[node as usize];
        if !peer.up {
            return actions.push(Action::Restart(node));
        }
        if world.crashes < self.crashes {
            actions.push(Action::Crash(node));
        }
        if let Some(owner) = &peer.owner {
            if owner.is_fenced() {
                actions.push(Action::Retire(node));
            }
            actions.extend([Action::Release(node), Action::Adopt(node)]);
            if peer.gives {
                return actions.push(Action::TakeBack(node));
            }
            let cuts = owner.version().epoch - world.bases[&owner.term()].epoch;
            if cuts < self.cuts && !owner.is_fenced() {
                actions.push(Action::Cut(node));
            }
            if owner.term() < self.terms && world.renewals == 0 {
                let any = self.fault == Some(Fault::GiveAnyCopy);
                let members = World::others(node).filter(|member| owner.may_hand_over(*member) || any);
                actions.extend(members.map(|member| Action::Give(node, member)));
            }
            actions.extend([Action::Propose(node), Action::Expose(node)]);
            if owner.may_write() || self.fault == Some(Fault::WriteEarly) && owner.proposed().is_some() {
                actions.push(Action::Write(node));
            }
        }
        // Whether the owner lives or not.
        if peer.owner.is_none() && peer.member.copy().is_some() && world.register.term < self.terms {
            actions.push(Action::Claim(node));
        }
        if peer.candidate.is_some() {
            actions.push(Action::TakeOver(node));
        }
    }

    fn step(&self, world: &mut World, action: Action) {
        match action {
            Action::Cut(node) => cut(world, node),
            Action::Release(node) => self.release(world, node),
            Action::Propose(node) => {
                let acks = self.acks;
                with_owner(world, node, |owner| owner.propose(Rule { members: World::others(node).collect(), acks }));
            }
            Action::Write(node) => {
                let owner = world.peer(node).owner.as_ref();
                let Some((term, rule)) = owner.and_then(|owner| Some((owner.term(), owner.proposed()?.clone()))) else {
                    return;
                };
                if let Ok(register) = world.register.protect(node, term, rule.members, rule.acks) {
                    world.register = register;
                }
            }
            Action::Adopt(node) => {
                let register = world.register.clone();
                with_owner(world, node, |owner| owner.adopt(&register));
            }
            Action::Expose(node) => {
                let Some(term) = world.peer(node).owner.as_ref().map(Owner::term) else { return };
                if let Ok(register) = world.register.expose(node, term) {
                    world.register = register;
                }
            }
            Action::Claim(node) => self.claim(world, node),
            Action::TakeOver(node) => take_over(world, node),
            Action::Crash(node) => {
                world.crashes += 1;
                world.peer(node).up = false;
                self.begin_anew(world, node);
            }
            Action::Restart(node) => {
                self.begin_anew(world, node);
                world.peer(node).up = true;
                send_all(world, node);
            }
            Action::Retire(node) => {
                self.begin_anew(world, node);
                send_all(world, node);
            }
            Action::Give(node, to) => {
                let renewals = world.renewals;
                let Some(version) = world.peer(node).owner.as_ref().map(Owner::version) else { return };
                world.peer(node).gives = true;
                world.network.insert(Message::Take { to, term: version.term, from: node, renewals, version });
            }
            Action::TakeBack(node) => self.take_back(world, node),
            Action::Deliver(message) => self.deliver(world, message),
        }
    }

    /// All that a node knew is lost.
    fn begin_anew(&self, world: &mut World, node: Node) {
        let term = if self.fault == Some(Fault::ForgetPromise) { 0 } else { world.register.term };
        let Peer { up, life, .. } = *world.peer(node);
        let member = Member::fresh(term);
        *world.peer(node) = Peer { up, owner: None, gives: false, candidate: None, member, life: life + 1 };
    }

    fn take_back(&self, world: &mut World, node: Node) {
        let register = world.register.clone();
        let Some(owner) = &mut world.peer(node).owner else { return };
        if register.owner == node && register.term == owner.term() || self.fault == Some(Fault::GoOnWithoutWord) {
            world.peer(node).gives = false;
            // Whoever is still to be told finds another value than the one that it was told of.
            world.renewals += u8::from(self.fault != Some(Fault::GoOnWithoutWord));
        } else {
            owner.adopt(&register);
        }
    }

    /// A member is told to go on: if all is as the owner says, the register is the one that changes.
    fn take(&self, world: &mut World, to: Node, from: Node, version: Version) {
        let copy = world.peer(to).member.copy();
        let right = copy == Some(version) || self.fault == Some(Fault::GiveAnyCopy);
        let (Some(copy), true) = (copy, right && world.peer(to).owner.is_none()) else { return };
        let Ok(register) = world.register.hand_over(from, version.term, to) else { return };
        world.bases.insert(register.term, copy);
        let peer = world.peer(to);
        peer.member.promise(register.term);
        peer.candidate = None;
        peer.owner = Some(Owner::new(&register, copy.epoch));
        world.register = register;
    }

    fn release(&self, world: &mut World, node: Node) {
        let early = self.fault == Some(Fault::ReleaseEarly);
        let Some(owner) = &mut world.peer(node).owner else { return };
        let (term, cut) = (owner.term(), owner.version().epoch);
        let left = match owner.release() {
            Release::All => cut + 1,
            Release::UpTo(_) if early => cut,
            Release::UpTo(epoch) => epoch,
            Release::Nothing => return,
        };
        if left > world.bases[&term].epoch {
            world.left.insert((term, left));
        }
    }

    fn claim(&self, world: &mut World, node: Node) {
        let Ok(register) = world.register.claim(node) else { return };
        let Some(promise) = world.peer(node).member.promise(register.term) else { return };
        let mut asked = register.clone();
        if self.fault == Some(Fault::AskFew) {
            asked.acks = asked.members.len();
        }
        world.peer(node).candidate = Some(Candidate::new(node, &asked, promise));
        let term = register.term;
        let ask = |to| Message::Ask { to, from: node, term };
        world.network.extend(World::others(node).map(ask));
        world.register = register;
    }
}

/// Owners send a node that begins all they have.
fn send_all(world: &mut World, to: Node) {
    let life = world.peer(to).life;
    let owners = World::others(to).filter_map(|from| {
        let owner = world.nodes[from as usize].owner.as_ref().filter(|owner| !owner.is_fenced())?;
        let version = owner.version();
        let has_cut = version.epoch > world.bases[&version.term].epoch;
        has_cut.then_some(Message::Data { to, life, from, version, base: None })
    });
    let messages: Vec<Message> = owners.collect();
    world.network.extend(messages);
}

fn with_owner(world: &mut World, node: Node, act: impl FnOnce(&mut Owner)) {
    if let Some(owner) = &mut world.peer(node).owner {
        act(owner);
    }
}

fn cut(world: &mut World, node: Node) {
    let Some(owner) = &mut world.peer(node).owner else { return };
    let epoch = owner.cut();
    let version = owner.version();
    let base = |to| owner.copy_of(to).filter(|known| known + 1 == epoch);
    let bases: Vec<(Node, Option<Epoch>)> = World::others(node).map(|to| (to, base(to))).collect();
    let life = |to: Node| world.nodes[to as usize].life;
    let data = bases.into_iter().map(|(to, base)| Message::Data { to, life: life(to), from: node, version, base });
    let data: Vec<Message> = data.collect();
    world.network.extend(data);
}

fn take_over(world: &mut World, node: Node) {
    let Some(candidate) = &world.peer(node).candidate else { return };
    let (term, outcome) = (candidate.term(), candidate.outcome());
    let Outcome::TakeOver(version) = outcome else { return };
    let Ok(register) = world.register.take_over(node, term) else { return };
    world.bases.insert(term, version);
    let peer = world.peer(node);
    peer.candidate = None;
    peer.owner = Some(Owner::new(&register, version.epoch));
    world.register = register;
}

impl Group {
    fn deliver(&self, world: &mut World, message: Message) {
        match message {
            Message::Take { to, term, from, renewals, version } => {
                if (world.register.term, world.renewals) == (term, renewals) {
                    self.take(world, to, from, version);
                }
            }
            other => deliver(world, other),
        }
    }
}

fn deliver(world: &mut World, message: Message) {
    match message {
        Message::Take { .. } => {}
        Message::Data { to, life, from, version, base } => {
            // An owner's own copy is of no use to others while it runs.
            if world.peer(to).owner.is_some() {
                return;
            }
            match world.peer(to).member.staged(version, base) {
                Answer::Acknowledged(version) => {
                    world.network.insert(Message::Acknowledged { to: from, from: to, version });
                }
                Answer::Fenced(term) => drop(world.network.insert(Message::Fenced { to: from, term })),
                Answer::NeedsAll => {
                    if base.is_some() {
                        world.network.insert(Message::Data { to, life, from, version, base: None });
                    }
                }
            }
        }
        Message::Acknowledged { to, from, version } => {
            with_owner(world, to, |owner| owner.acknowledge(from, version));
        }
        Message::Fenced { to, term } => with_owner(world, to, |owner| owner.saw_term(term)),
        Message::Ask { to, from, term } => {
            if let Some(Promise { term, copy }) = world.peer(to).member.promise(term) {
                world.network.insert(Message::Promised { to: from, from: to, term, copy });
            }
        }
        Message::Promised { to, from, term, copy } => {
            if let Some(candidate) = &mut world.peer(to).candidate {
                candidate.promised(from, Promise { term, copy });
            }
        }
    }
}

const SMALL: Group = Group { acks: 1, cuts: 2, terms: 2, crashes: 1, protected: false, fault: None };
/// Begins later, so that it comes further.
const LATER: Group = Group { protected: true, ..SMALL };
const STATES: usize = 400_000;
const FOLLOWED: &str = "an owner that was followed lets out nothing new";
const KEPT: &str = "who goes on has all that was let out";
const COPIES: &str = "a protected group has enough copies to go on from";

/// Explores a group.
fn explore(group: Group) -> impl Checker<Group> {
    group.checker().threads(2).target_state_count(STATES).spawn_bfs().join()
}

fn expect_no_fault(group: Group) {
    let checker = explore(group);
    [FOLLOWED, KEPT, COPIES].into_iter().for_each(|property| checker.assert_no_discovery(property));
    checker.assert_any_discovery("a member goes on");
    println!("{} states", checker.unique_state_count());
}

#[test]
fn no_order_of_events_loses_an_output_with_one_acknowledgement() {
    expect_no_fault(SMALL);
}

#[test]
fn no_order_of_events_loses_an_output_with_two_acknowledgements() {
    expect_no_fault(Group { acks: 2, ..SMALL });
}

#[test]
fn no_order_of_events_loses_an_output_of_a_group_that_is_protected() {
    expect_no_fault(LATER);
}

#[test]
fn no_order_of_events_loses_an_output_of_a_group_that_waits_for_all() {
    expect_no_fault(Group { acks: 2, ..LATER });
}

#[test]
fn the_checker_sees_a_register_that_is_written_too_early() {
    explore(Group { fault: Some(Fault::WriteEarly), ..SMALL }).assert_any_discovery(COPIES);
}

#[test]
fn the_checker_sees_a_candidate_that_asks_too_few() {
    explore(Group { fault: Some(Fault::AskFew), ..LATER }).assert_any_discovery(KEPT);
}

#[test]
fn the_checker_sees_a_member_that_forgets_its_promise() {
    explore(Group { fault: Some(Fault::ForgetPromise), ..LATER }).assert_any_discovery(FOLLOWED);
}

#[test]
fn the_checker_sees_an_owner_that_goes_on_after_it_has_consented_to_hand_over() {
    explore(Group { fault: Some(Fault::GoOnWithoutWord), ..LATER }).assert_any_discovery(FOLLOWED);
}

#[test]
fn the_checker_sees_an_owner_that_hands_over_to_a_member_that_lacks_something() {
    explore(Group { fault: Some(Fault::GiveAnyCopy), ..LATER }).assert_any_discovery(KEPT);
}

#[test]
fn the_checker_sees_an_owner_that_lets_out_too_early() {
    explore(Group { fault: Some(Fault::ReleaseEarly), ..LATER }).assert_any_discovery(KEPT);
}
