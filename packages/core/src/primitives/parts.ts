import type { OperandLimit, View } from '../dispatch/backend.ts'
import { program, specialize, type Typed, type TypedProgram, typedPostOrder } from '../expr/program.ts'
import { partOf, rebuild } from '../expr/rebuild.ts'
import type { DType } from '../tensor/dtype.ts'
import { broadcastShapes, mayOverlap } from '../tensor/layout.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'

/** One launch of an expression that is computed in several, as it has more operands than a backend binds. */
export interface Part {
  readonly kernel: TypedProgram
  /** What the launch reads: inputs of the whole by their number, and from there on temporaries by theirs. */
  readonly reads: readonly number[]
  /** What the launch writes: outputs of the whole by their number, and from there on temporaries by theirs. */
  readonly writes: readonly number[]
}

/**
 * The limit of a backend whose kernels bind at most so many pieces of memory, 4 or more, outputs and inputs together:
 * elementwise programs with more, and their gradients, are computed in several calls.
 *
 * @example
 * import { operandLimit } from '@tilegrad/core/operands'
 * import { reference } from 'tilegrad'
 *
 * const few = { ...reference, name: 'few', operands: operandLimit(8) }
 */
export const operandLimit = (most: number): OperandLimit => ({
  most,
  // Memory that several of them share is bound once.
  exceeded: (outputs, inputs) =>
    outputs.length + inputs.length > most &&
    new Set([...outputs, ...inputs].map((v) => v.buffer)).size > most,
  split(backend, program, outputs, inputs, launch) {
    const parts = partsOf(program, most)
    const readAfter = (at: number, what: (i: number) => boolean): boolean =>
      parts.some(({ reads }, later) => later > at && reads.some(what))
    /** Inputs, then temporaries: as large as what they are computed of, freed after their last use. */
    const operands = [...inputs]
    const made: Tensor[] = []
    /** Outputs that lie where a later part reads: they are written at the end. */
    const late: (() => void)[] = []
    const fresh = (shape: readonly number[], dtype: DType): Tensor => {
      const t = allocate(backend, shape, dtype)
      made.push(t)
      return t
    }
    try {
      parts.forEach(({ kernel: part, reads, writes }, at) => {
        const from = reads.map((i) => operands[i])
        const to = writes.map((o, k) => {
          const { dtype } = part.exprs[k]
          const out = outputs[o]
          if (!out) {
            const shapes = part.usesIndex ? [outputs[0].shape] : from.map((v) => v.shape)
            const t = fresh(broadcastShapes(program.name, shapes), dtype)
            operands.push(t)
            return t
          }
          const spoils = (v: View): boolean => v.buffer === out.buffer && mayOverlap(v, out)
          if (!readAfter(at, (i) => i < inputs.length && spoils(operands[i]))) return out
          const t = fresh(out.shape, dtype)
          late.push(() => launch(specialize(COPY, [dtype], []), [out], [t]))
          return t
        })
        launch(part, to, from)
        for (const i of reads)
          if (i >= inputs.length && !readAfter(at, (j) => j === i)) (operands[i] as Tensor).dispose()
      })
      for (const store of late) store()
    } finally {
      for (const t of made) t.dispose()
    }
  },
})

const COPY = program('copy', 1, ([x]) => x)

const known = new WeakMap<TypedProgram, Map<number, readonly Part[]>>()

/**
 * Splits an expression into parts that bind `most` operands each, 4 or more: outputs are grouped by the inputs they have
 * in common, and where one needs too many alone, parts of it become temporaries. In the order to run them; values are
 * those of the whole, as temporaries have the dtypes that the nodes have.
 */
export function partsOf(kernel: TypedProgram, most: number): readonly Part[] {
  const plans = known.get(kernel) ?? new Map<number, readonly Part[]>()
  known.set(kernel, plans)
  const parts = plans.get(most) ?? split(kernel, most)
  plans.set(most, parts)
  return parts
}

function split(kernel: TypedProgram, most: number): Part[] {
  const parts: Part[] = []
  const dtypes: DType[] = [...kernel.inputs]
  const part = (exprs: readonly Typed[], reads: ReadonlySet<number>, writes: readonly number[]): void => {
    const order = [...reads].sort((a, b) => a - b)
    const renumbered = rebuild(exprs, (t) =>
      t.kind === 'input' ? { ...t, index: order.indexOf(t.index) } : t,
    )
    const inputs = order.map((i) => dtypes[i])
    parts.push({ kernel: partOf(kernel, renumbered, inputs), reads: order, writes })
  }

  let roots = kernel.exprs
  let sources = sourcesOf(roots)
  const size = (t: Typed): number => (sources.get(t) as Set<number>).size
  for (let temporaries = 0; ; temporaries++) {
    const big = roots.find((root) => size(root) >= most)
    if (!big) break
    // There is one, as most is 4 or more: the first node of two or more inputs has at most three.
    let best: Typed | null = null
    for (const t of typedPostOrder([big]))
      if (size(t) >= 2 && size(t) < most && (best === null || size(t) >= size(best))) best = t
    if (best === null) break
    const { dtype } = best
    part([best], sources.get(best) as Set<number>, [kernel.exprs.length + temporaries])
    const index = dtypes.push(dtype) - 1
    roots = rebuild(roots, (t) => (t === best ? { id: 0, kind: 'input', dtype, index, args: [] } : t))
    sources = sourcesOf(roots)
  }

  const groups: { readonly writes: number[]; reads: Set<number> }[] = []
  roots.forEach((root, output) => {
    const own = sources.get(root) as Set<number>
    for (const group of groups) {
      const reads = new Set([...group.reads, ...own])
      if (reads.size + group.writes.length >= most) continue
      group.reads = reads
      group.writes.push(output)
      return
    }
    groups.push({ writes: [output], reads: own })
  })
  for (const { reads, writes } of groups)
    part(
      writes.map((o) => roots[o]),
      reads,
      writes,
    )
  return parts
}

/** The inputs that each node of some expressions depends on. */
function sourcesOf(roots: readonly Typed[]): Map<Typed, Set<number>> {
  const out = new Map<Typed, Set<number>>()
  for (const t of typedPostOrder(roots)) {
    const own = new Set<number>(t.kind === 'input' ? [t.index] : [])
    for (const arg of t.args) for (const i of out.get(arg) as Set<number>) own.add(i)
    out.set(t, own)
  }
  return out
}
