import type { Module } from './module.ts'

/** The tree of modules below one, as PyTorch prints it: equal ones in a row once. @internal */
export function treeOf(module: Module, path: readonly Module[]): string {
  const name = module.constructor.name
  if (path.includes(module)) return `${name}(…)`
  const rows: { first: string; last: string; count: number; text: string }[] = []
  for (const [child, m] of module.namedChildren()) {
    const text = treeOf(m, [...path, module]).replaceAll('\n', '\n  ')
    const row = rows.at(-1)
    if (row && row.text === text && follows(row.last, child)) {
      row.last = child
      row.count++
    } else rows.push({ first: child, last: child, count: 1, text })
  }
  const lines = rows.map(({ first, last, count, text }) =>
    count === 1
      ? `(${first}): ${text}`
      : `(${first}-${last.slice(last.lastIndexOf('.') + 1)}): ${count} × ${text}`,
  )
  const extra = module.extraRepr()
  return lines.length === 0 ? `${name}(${extra})` : `${name}(${extra}\n  ${lines.join('\n  ')}\n)`
}

/** Whether two names are neighbours of one list, such as `h.3` and `h.4`. */
function follows(a: string, b: string): boolean {
  const [at, bt] = [a.lastIndexOf('.') + 1, b.lastIndexOf('.') + 1]
  return (
    a.slice(0, at) === b.slice(0, bt) &&
    /^\d+$/.test(b.slice(bt)) &&
    Number(a.slice(at)) + 1 === Number(b.slice(bt))
  )
}
