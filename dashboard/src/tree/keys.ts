/** What keys do in a tree table (WAI-ARIA treegrid). */
import type { Line } from './forest';

export type Step = { do: 'focus' | 'open' | 'close' | 'visit'; id: string } | undefined;

/** The step for a key on a line, among the lines that are shown. */
export function step(key: string, line: Line, shown: Line[], closed: ReadonlySet<string>): Step {
  const { vm, children } = line.node;
  const at = shown.indexOf(line);
  const isOpen = children.length > 0 && !closed.has(vm.id);
  switch (key) {
    case 'ArrowDown':
      return focus(shown[at + 1]?.node.vm.id);
    case 'ArrowUp':
      return focus(shown[at - 1]?.node.vm.id);
    case 'Home':
      return focus(shown[0]?.node.vm.id);
    case 'End':
      return focus(shown.at(-1)?.node.vm.id);
    case 'ArrowRight':
      return isOpen || children.length === 0 ? focus(children[0]?.vm.id) : { do: 'open', id: vm.id };
    case 'ArrowLeft':
      return isOpen ? { do: 'close', id: vm.id } : focus(line.parent);
    case 'Enter':
      return { do: 'visit', id: vm.id };
    default:
      return undefined;
  }
}

function focus(id: string | undefined): Step {
  return id === undefined ? undefined : { do: 'focus', id };
}
