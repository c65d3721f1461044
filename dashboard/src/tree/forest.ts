/** Machines as a forest: each clone below the machine that it was made from, as long as that is there. */
import type { Vm } from '../api/types';

export interface Node {
  vm: Vm;
  children: Node[];
}

/** A node as a line of a list, deeper nodes indented. */
export interface Line {
  node: Node;
  /** From 1. */
  level: number;
  /** Place among its siblings, from 1, and how many they are. */
  place: number;
  siblings: number;
  parent: string | undefined;
}

const names = new Intl.Collator(undefined, { numeric: true });

export function forest(vms: Vm[]): Node[] {
  const nodes = new Map(vms.map((vm) => [vm.id, { vm, children: [] as Node[] }]));
  const roots: Node[] = [];
  for (const node of nodes.values()) {
    const parent = node.vm.origin ? nodes.get(node.vm.origin.vm) : undefined;
    (parent && parent !== node ? parent.children : roots).push(node);
  }
  for (const { children } of nodes.values()) children.sort(byName);
  return roots.sort(byName);
}

/** The lines of a forest, without what is below closed nodes. */
export function lines(roots: Node[], closed: ReadonlySet<string>): Line[] {
  const found: Line[] = [];
  const walk = (nodes: Node[], level: number, parent: string | undefined) => {
    nodes.forEach((node, index) => {
      found.push({ node, level, place: index + 1, siblings: nodes.length, parent });
      if (!closed.has(node.vm.id)) walk(node.children, level + 1, node.vm.id);
    });
  };
  walk(roots, 1, undefined);
  return found;
}

/** Where a machine stands in space. */
export interface Place {
  vm: Vm;
  at: [x: number, z: number];
  /** The machine it was made from. */
  from: [x: number, z: number] | undefined;
}

const GAP = 2.2;

/**
 * Places for all machines around the host: families side by side in a spiral of squares, each clone beside its kin.
 */
export function places(roots: Node[]): Place[] {
  const order = lines(roots, new Set());
  const at = new Map(order.map(({ node }, index) => [node.vm.id, spiral(index + 1)]));
  return order.map(({ node: { vm }, parent }) => ({
    vm,
    at: at.get(vm.id) ?? [0, 0],
    from: parent === undefined ? undefined : at.get(parent),
  }));
}

/** The n-th cell of a square spiral around the middle, which is the host's. */
function spiral(n: number): [number, number] {
  const ring = Math.ceil((Math.sqrt(n + 1) - 1) / 2);
  const side = ring * 2;
  const first = (side - 1) ** 2;
  const step = n - first;
  const [leg, along] = [Math.floor(step / side), (step % side) + 1 - ring];
  const turned: [number, number][] = [
    [ring, along],
    [-along, ring],
    [-ring, -along],
    [along, -ring],
  ];
  const [x, z] = turned[leg] ?? [0, 0];
  return [x * GAP, z * GAP];
}

function byName(a: Node, b: Node): number {
  return names.compare(a.vm.name, b.vm.name);
}
