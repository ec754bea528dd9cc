import type { DType } from '../tensor/dtype.ts'
import { nextKernel, type Typed, type TypedProgram, typedPostOrder, usesIndex } from './program.ts'

/** @internal A kernel of expressions over other inputs, with the numbers that another one takes. */
export const partOf = (
  whole: TypedProgram,
  exprs: readonly Typed[],
  inputs: readonly DType[],
): TypedProgram => ({
  ...whole,
  id: nextKernel(),
  exprs,
  inputs,
  usesIndex: usesIndex(exprs),
  lost: null,
})

/**
 * @internal Makes expressions anew, with some nodes replaced. What they share they go on sharing, and each node gets an `id`
 * that no other one of them has.
 */
export function rebuild(roots: readonly Typed[], replace: (t: Typed) => Typed): Typed[] {
  const out = new Map<Typed, Typed>()
  for (const t of typedPostOrder(roots)) {
    const made = replace(t)
    const args = made === t ? t.args.map((arg) => out.get(arg) as Typed) : made.args
    out.set(t, { ...made, id: out.size, args })
  }
  return roots.map((root) => out.get(root) as Typed)
}

/** @internal Makes expressions anew, with what is equal in them computed once. */
export function interned(roots: readonly Typed[]): Typed[] {
  const known = new Map<string, Typed>()
  const out = new Map<Typed, Typed>()
  for (const t of typedPostOrder(roots)) {
    const args = t.args.map((arg) => out.get(arg) as Typed)
    const { id: _, args: __, ...own } = t
    // JSON knows neither −0 nor what is no number.
    const value = t.kind === 'const' && (Object.is(t.value, -0) ? '-0' : String(t.value))
    // In which order a node's properties were written says nothing.
    const key = `${JSON.stringify(Object.entries(own).sort())} ${value} ${args.map(({ id }) => id)}`
    const found = known.get(key) ?? ({ ...t, id: known.size, args } as Typed)
    known.set(key, found)
    out.set(t, found)
  }
  return roots.map((root) => out.get(root) as Typed)
}
