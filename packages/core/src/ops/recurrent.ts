/**
 * Recurrences over time, each direction of a layer one operator: what inputs contribute to all gates of all steps comes in, as
 * one product of the layer's; here a step is one product, h · Wᵀ, and one program for all that is elementwise. Going back a step is
 * one program and one product as well, and the gradient of the weights one product over all steps (as cuDNN has it: Appleyard et
 * al. 2016).
 *
 * Test: recurrent.test.ts of nn.
 */

import { grad } from '../autograd/backward.ts'
import { enableGrad, type GradNode, gradEnabled } from '../autograd/tape.ts'
import { apply, type Op } from '../dispatch/op.ts'
import * as e from '../expr/expr.ts'
import { type Program, program, specialize } from '../expr/program.ts'
import { addInto, compute, copy, elementwise, elementwiseAll, fill } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { alias, part, permuteView, reshapeView, transposeView } from '../primitives/views.ts'
import { selectLayout, sliceLayout } from '../tensor/layout.ts'
import { scope } from '../tensor/memory.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { stack } from './shape.ts'

interface Attrs {
  /** From the last step to the first. */
  readonly reverse: boolean
  /** Results lie in memory as (B, T, H). */
  readonly batchFirst: boolean
}

/** What one step of a kind of recurrence computes. */
interface Cell {
  readonly name: string
  /** Blocks of H rows in W, and of H columns in what inputs contribute. */
  readonly gates: number
  /** Blocks of H columns that are kept of each step for its gradients. */
  readonly kept: number
  /** Whether there is a second state, c, which comes after h. */
  readonly memory: boolean
  /** Whether a bias (H) of the last gate's h · Wᵀ comes last. */
  readonly bias: boolean
  /**
   * Computes a step. It takes x's gates, those of h · Wᵀ, the bias where there is one, and the state (c where there is one, else h);
   * it gives what is kept for gradients, the new c where there is one, and the new h.
   */
  readonly forward: Program
  /**
   * Computes the gradients of a step. It takes what is kept, the states before (h, or c and then the new c), the gradients of h from
   * outside and from the next step, and that of c; it gives the gradients of x's gates, of h · Wᵀ's gates where these differ, and of
   * the state before.
   */
  readonly backward: Program
  /** Gates of x and of h · Wᵀ have gradients of their own. */
  readonly apart: boolean
}

const oneMinus = (x: e.Expr): e.Expr => e.sub(1, x)

const rnn = (name: string, act: (x: e.Expr) => e.Expr, slope: (y: e.Expr) => e.Expr): Cell => ({
  ...{ name, gates: 1, kept: 0, memory: false, bias: false, apart: false },
  forward: program(name, 2, ([x, hw]) => act(e.add(x, hw))),
  backward: program(`${name}.back`, 3, ([y, dy, dh]) => e.mul(e.add(dy, dh), slope(y))),
})

const CELLS = {
  rnn_tanh: rnn('rnn_tanh', e.tanh, (y) => oneMinus(e.square(y))),
  rnn_relu: rnn(
    'rnn_relu',
    // As relu: NaN stays NaN.
    (x) => e.select(e.le(x, 0), 0, x),
    (y) => e.select(e.le(y, 0), 0, 1),
  ),
  lstm: {
    ...{ name: 'lstm', gates: 4, kept: 4, memory: true, bias: false, apart: false },
    forward: program('lstm', 9, ([xi, xf, xg, xo, hi, hf, hg, ho, c]) => {
      const [i, f, o] = [e.add(xi, hi), e.add(xf, hf), e.add(xo, ho)].map(e.sigmoid)
      const g = e.tanh(e.add(xg, hg))
      const now = e.add(e.mul(f, c), e.mul(i, g))
      return [i, f, g, o, now, e.mul(o, e.tanh(now))]
    }),
    backward: program('lstm.back', 9, ([i, f, g, o, before, c, dy, dh, dc]) => {
      const t = e.tanh(c)
      const d = e.add(dy, dh)
      const dNow = e.add(dc, e.mul(e.mul(d, o), oneMinus(e.square(t))))
      const gate = (s: e.Expr): e.Expr => e.mul(s, oneMinus(s))
      return [
        e.mul(e.mul(dNow, g), gate(i)),
        e.mul(e.mul(dNow, before), gate(f)),
        e.mul(e.mul(dNow, i), oneMinus(e.square(g))),
        e.mul(e.mul(d, t), gate(o)),
        e.mul(dNow, f),
      ]
    }),
  },
  gru: {
    ...{ name: 'gru', gates: 3, kept: 4, memory: false, bias: true, apart: true },
    forward: program('gru', 8, ([xr, xz, xn, hr, hz, hn, b, h]) => {
      const [r, z] = [e.add(xr, hr), e.add(xz, hz)].map(e.sigmoid)
      const q = e.add(hn, b)
      const n = e.tanh(e.add(xn, e.mul(r, q)))
      return [r, z, n, q, e.add(n, e.mul(z, e.sub(h, n)))]
    }),
    backward: program('gru.back', 8, ([r, z, n, q, before, dy, dh, rest]) => {
      const d = e.add(e.add(dy, dh), rest)
      const dz = e.mul(e.mul(d, e.sub(before, n)), e.mul(z, oneMinus(z)))
      const dn = e.mul(e.mul(d, oneMinus(z)), oneMinus(e.square(n)))
      const dr = e.mul(e.mul(dn, q), e.mul(r, oneMinus(r)))
      return [dr, dz, dn, dr, dz, e.mul(dn, r), e.mul(d, z)]
    }),
  },
} as const satisfies Record<string, Cell>

/** A kind of recurrence. */
export type Recurrence = keyof typeof CELLS

/** Block `k` of the columns of step `t` of (T, B, …): (B, size). */
const blockOf = (x: Tensor, t: number, k: number, size: number): Tensor =>
  x.viewAs({
    shape: [x.shape[1], size],
    strides: x.strides.slice(1),
    offset: x.offset + t * x.strides[0] + k * size * x.strides[2],
  })

const blocksOf = (x: Tensor, t: number, count: number, size: number): Tensor[] =>
  Array.from({ length: count }, (_, k) => blockOf(x, t, k, size))

/** Fills blocks, which lie beside each other and are no inputs: nothing is to be copied before. */
function into(outputs: readonly Tensor[], p: Program, inputs: readonly Tensor[]): void {
  const dtypes = (list: readonly Tensor[]) => list.map((t) => t.dtype)
  compute(outputs[0].backend, specialize(p, dtypes(inputs), [], dtypes(outputs)), outputs, inputs, [])
}

/** The steps in the order in which they are taken. */
const stepsOf = (count: number, { reverse }: Attrs): number[] =>
  Array.from({ length: count }, (_, i) => (reverse ? count - 1 - i : i))

const at = (x: Tensor, t: number): Tensor => part('select', x, (l) => selectLayout('select', l, 0, t))

/** A new tensor for results (T, B, size), which lies as (B, T, size) where that is asked for. */
function made(like: Tensor, t: number, b: number, size: number, { batchFirst }: Attrs): Tensor {
  if (!batchFirst) return allocate(like.backend, [t, b, size], like.dtype)
  return permuteView(allocate(like.backend, [b, t, size], like.dtype), [1, 0, 2])
}

/** Inputs: what x contributes (T, B, gates · H), W (gates · H, H), h (B, H), c or the bias where there are such. */
function compose(cell: Cell, [x, w, h0, extra]: readonly Tensor[], attrs: Attrs): Tensor[] {
  const [steps, batch] = x.shape
  const size = h0.shape[1]
  const y = made(x, steps, batch, size, attrs)
  const memory = cell.memory ? [made(x, steps, batch, size, attrs)] : []
  const kept = cell.kept > 0 ? [allocate(x.backend, [steps, batch, cell.kept * size], x.dtype)] : []
  const turned = transposeView(w, 0, 1)
  let before = -1
  for (const t of stepsOf(steps, attrs)) {
    scope(() => {
      const h = before < 0 ? h0 : blockOf(y, before, 0, size)
      const product = reshapeView(matmulPrimitive(cell.name, h, turned), [1, batch, cell.gates * size])
      const state = cell.memory ? (before < 0 ? extra : blockOf(memory[0], before, 0, size)) : h
      const inputs = [...blocksOf(x, t, cell.gates, size), ...blocksOf(product, 0, cell.gates, size)]
      if (cell.bias) inputs.push(extra)
      if (cell.forward.inputs > inputs.length) inputs.push(state)
      const outputs = kept.flatMap((k) => blocksOf(k, t, cell.kept, size))
      into([...outputs, ...[...memory, y].map((to) => blockOf(to, t, 0, size))], cell.forward, inputs)
    })
    before = t
  }
  return [y, ...memory, ...kept]
}

/** Computes a recurrence in operators that are recorded, for gradients of gradients: the states h of all steps, and c. */
function recorded(cell: Cell, [x, w, h0, extra]: readonly Tensor[], attrs: Attrs): Tensor[] {
  const [steps] = x.shape
  const size = h0.shape[1]
  const gatesOf = (t: Tensor): Tensor[] =>
    Array.from({ length: cell.gates }, (_, k) =>
      part('narrow', t, (l) => sliceLayout('narrow', l, 1, k * size, (k + 1) * size, 1)),
    )
  const turned = transposeView(w, 0, 1)
  let [h, c] = [h0, extra]
  const ys = new Array<Tensor>(steps)
  const cs = new Array<Tensor>(steps)
  for (const t of stepsOf(steps, attrs)) {
    const inputs = [...gatesOf(at(x, t)), ...gatesOf(matmulPrimitive(cell.name, h, turned))]
    if (cell.bias) inputs.push(extra)
    if (cell.forward.inputs > inputs.length) inputs.push(cell.memory ? c : h)
    const outputs = elementwiseAll(cell.forward, inputs)
    h = outputs[outputs.length - 1]
    if (cell.memory) c = outputs[outputs.length - 2]
    ;[ys[t], cs[t]] = [h, c]
  }
  return [stack(ys), ...(cell.memory ? [stack(cs)] : [])]
}

/** Rows of several steps as those of one matrix. */
const flat = (x: Tensor, from: number, count: number): Tensor => {
  const some = part('narrow', x, (l) => sliceLayout('narrow', l, 0, from, from + count, 1))
  return reshapeView(some, [count * x.shape[1], x.shape[2]])
}

function backward(
  cell: Cell,
  node: GradNode<Attrs>,
  [dy, dm]: readonly (Tensor | null)[],
): (Tensor | null)[] {
  const { attrs } = node
  const given = node.inputs.map((_, i) => node.input(i))
  if (!dy && !(cell.memory && dm)) return given.map(() => null)
  if (gradEnabled()) return again(cell, node, given, [dy, cell.memory ? dm : null])
  const [x, w, h0, extra] = given
  const [steps, batch] = x.shape
  const size = h0.shape[1]
  const y = node.output(0)
  const memory = cell.memory ? node.output(1) : null
  const kept = cell.kept > 0 ? node.output(cell.memory ? 2 : 1) : null
  const none = fill(x.backend, [1, 1], 0, x.dtype)
  const dx = allocate(x.backend, x.shape, x.dtype)
  const dProduct = cell.apart ? allocate(x.backend, x.shape, x.dtype) : dx
  const dProducts = (t: number): Tensor => blockOf(dProduct, t, 0, cell.gates * size)
  let dh: Tensor = none
  let dState: Tensor = none
  const order = stepsOf(steps, attrs)
  // The CPU engine reads a matrix where it is if its columns are contiguous: a copy pays for more than some steps.
  const across = steps > 8 ? transposeView(copy(transposeView(w, 0, 1)), 0, 1) : w
  for (let s = steps - 1; s >= 0; s--) {
    const t = order[s]
    ;[dh, dState] = scope(() => {
      const previous = (all: Tensor, first: Tensor): Tensor =>
        s > 0 ? blockOf(all, order[s - 1], 0, size) : first
      const inputs = kept ? blocksOf(kept, t, cell.kept, size) : [blockOf(y, t, 0, size)]
      if (memory) inputs.push(previous(memory, extra), blockOf(memory, t, 0, size))
      else if (kept) inputs.push(previous(y, h0))
      inputs.push(dy ? blockOf(dy, t, 0, size) : none, dh)
      let state = dState
      if (memory && dm) state = elementwise(PLUS, [dState, blockOf(dm, t, 0, size)])
      if (kept) inputs.push(state)
      const next = kept ? [allocate(x.backend, [batch, size], x.dtype)] : []
      const outputs = blocksOf(dx, t, cell.gates, size)
      if (cell.apart) outputs.push(...blocksOf(dProduct, t, cell.gates, size))
      into([...outputs, ...next], cell.backward, inputs)
      return [matmulPrimitive(cell.name, dProducts(t), across), next[0] ?? none]
    })
  }
  const out: (Tensor | null)[] = [dx, null, null]
  if (node.needs(1)) {
    const turned = (d: Tensor): Tensor => transposeView(d, 0, 1)
    const dw = matmulPrimitive(cell.name, turned(dProducts(order[0])), h0)
    if (steps > 1) {
      // Each step's product was with what the step before it gave.
      const [to, from] = attrs.reverse ? [0, 1] : [1, 0]
      addInto(dw, matmulPrimitive(cell.name, turned(flat(dProduct, to, steps - 1)), flat(y, from, steps - 1)))
    }
    out[1] = dw
  }
  // What a gate of the state before let through, beside the product.
  if (node.needs(2)) out[2] = cell.apart ? elementwise(PLUS, [dh, dState]) : dh
  if (cell.memory) out.push(dState)
  // The engine sums it down.
  if (cell.bias) out.push(blockAll(dProduct, cell.gates - 1, size))
  return out
}

const PLUS = program('add', 2, ([a, b]) => e.add(a, b))

/** Block `k` of the columns of all steps: (T, B, size). */
const blockAll = (x: Tensor, k: number, size: number): Tensor =>
  x.viewAs({
    shape: [...x.shape.slice(0, 2), size],
    strides: x.strides,
    offset: x.offset + k * size * x.strides[2],
  })

/** Gradients that are recorded: the recurrence is computed again, in operators that are. */
function again(
  cell: Cell,
  node: GradNode<Attrs>,
  given: readonly Tensor[],
  douts: readonly (Tensor | null)[],
): (Tensor | null)[] {
  return enableGrad(() => {
    const xs = given.map((t, i) => (node.needs(i) ? alias(t) : t))
    const ys = recorded(cell, xs, node.attrs)
    const wanted = xs.filter((_, i) => node.needs(i))
    const used = ys.flatMap((y, i) => (douts[i] ? [[y, douts[i]] as const] : []))
    const grads = grad(
      used.map(([y]) => y),
      wanted,
      { gradOutputs: used.map(([, d]) => d), createGraph: true, allowUnused: true },
    )
    let next = 0
    return given.map((_, i) => (node.needs(i) ? (grads[next++] ?? null) : null))
  })
}

const OPS = Object.fromEntries(
  Object.entries<Cell>(CELLS).map(([name, cell]) => [
    name,
    {
      name,
      outputs: 1 + Number(cell.memory) + Number(cell.kept > 0),
      precision: 'float32',
      compose: (inputs, attrs) => compose(cell, inputs, attrs),
      backward: (node, douts) => backward(cell, node, douts),
    } satisfies Op<Attrs>,
  ]),
)

/**
 * One direction of a layer of a recurrence.
 *
 * @param x what inputs contribute to the gates of all steps, biases included: (T, B, gates · H), T ≥ 1.
 * @param w weights of the state before, (gates · H, H), the gates in PyTorch's order.
 * @param h the first state, (B, H).
 * @param extra of an LSTM the first c, (B, H); of a GRU the bias (H) of the new gate's h · Wᵀ.
 * @returns the states h of all steps, (T, B, H), and of an LSTM c of all steps.
 * @internal
 */
export function recurrence(
  kind: Recurrence,
  [x, w, h, extra]: readonly [x: Tensor, w: Tensor, h: Tensor, extra?: Tensor],
  attrs: Attrs,
): readonly [h: Tensor, c?: Tensor] {
  const cell: Cell = CELLS[kind]
  const [y, ...others] = apply(OPS[kind], extra ? [x, w, h, extra] : [x, w, h], attrs)
  const c = cell.memory ? others.shift() : undefined
  // What is kept is for gradients.
  if (!y.requiresGrad) for (const t of others) t.dispose()
  return c ? [y, c] : [y]
}
