/** Why a name is none, as the daemon sees it; nothing for a good one. */
export function nameProblem(name: string): string | null {
  if (!name) return 'give a name';
  if (name.length > 63) return 'at most 63 characters';
  return /^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)
    ? null
    : 'letters, digits, dots, hyphens and underscores; a letter or digit first';
}
