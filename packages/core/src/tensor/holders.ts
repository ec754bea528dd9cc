/** Who holds the memory when there is none left. Nothing is kept for it: it looks at running scopes and their graphs. */

import { show } from '../errors.ts'
import { tracked } from './scope.ts'
import { showBytes } from './show-bytes.ts'
import type { Storage } from './storage.ts'
import type { Tensor } from './tensor.ts'

/** How many kinds of tensors are named. */
const named = 3

/** Finds a tensor of each live storage of a backend that running scopes, or the graphs behind their tensors, know. */
function known(backend: unknown): Map<Storage, Tensor> {
  const found = new Map<Storage, Tensor>()
  const seen = new Set<object>()
  const stack = tracked() as unknown as (Tensor | null)[]
  while (stack.length > 0) {
    const t = stack.pop()
    if (!t || seen.has(t)) continue
    seen.add(t)
    const { storage, gradFn } = t
    if (!t.disposed && storage.backend === backend) {
      // The tensor that an operator made tells more than views of it.
      const other = found.get(storage)
      if (!other || t.numel > other.numel || (t.numel === other.numel && isFirst(t, other)))
        found.set(storage, t)
    }
    stack.push(t.grad)
    if (gradFn === null || seen.has(gradFn)) continue
    seen.add(gradFn)
    for (const list of [gradFn.inputs, gradFn.outputs, gradFn.owned ?? []])
      for (const t of list) stack.push(t)
  }
  return found
}

const isFirst = (a: Tensor, b: Tensor): boolean =>
  (a.gradFn?.sequence ?? Number.POSITIVE_INFINITY) < (b.gradFn?.sequence ?? Number.POSITIVE_INFINITY)

/**
 * Lists what of a backend's memory running scopes and their graphs hold most: `largest: 3 × float32 [4096, 1024]
 * of 16.0 MiB from matmul; …`, empty if nothing is known.
 *
 * @example
 * typeof largestHolders(defaultBackend()) // → string
 */
export function largestHolders(backend: unknown): string {
  const kinds = new Map<string, { count: number; bytes: number }>()
  for (const [{ bytes }, { dtype, shape, gradFn }] of known(backend)) {
    const kind = `${dtype} ${show(shape)} of ${showBytes(bytes)}${gradFn ? ` from ${gradFn.name}` : ''}`
    const entry = kinds.get(kind) ?? { count: 0, bytes: 0 }
    kinds.set(kind, { count: entry.count + 1, bytes: entry.bytes + bytes })
  }
  const list = [...kinds].sort(([, a], [, b]) => b.bytes - a.bytes).slice(0, named)
  return list.length === 0
    ? ''
    : `largest: ${list.map(([kind, { count }]) => `${count} × ${kind}`).join('; ')}`
}
