import { grad } from '../autograd/backward.ts'
import {
  type Backward,
  enableGrad,
  type GradNode,
  gradEnabled,
  noGrad,
  record,
  shouldRecord,
} from '../autograd/tape.ts'
import { describe } from '../checks.ts'
import { GradError, ValueError } from '../errors.ts'
import { backendOf } from '../primitives/common.ts'
import { addTensors, fillLike } from '../primitives/elementwise.ts'
import { alias, contiguous } from '../primitives/views.ts'
import { anyHalf, narrowed, widen } from '../primitives/widen.ts'
import { isFloat, promote } from '../tensor/dtype.ts'
import { type ArrayOperand, tensorsOf } from '../tensor/operands.ts'
import { collect, drop, settled, track } from '../tensor/scope.ts'
import type { Tensor } from '../tensor/tensor.ts'
import type { Backend, View } from './backend.ts'
import { listening, NO_NUMBERS, run, takes, type Work } from './call.ts'
import { casting } from './casting.ts'
import type { GradientAttrs, KernelOf, KernelTable } from './kernels.ts'
import { allocateAll, placesLike, type TensorSpec } from './placing.ts'

/**
 * What an operator wants in `autocast`: the number of its first operands that it multiplies, which then have 16 bits, or
 * 'float32' for results that are not rounded to 16 bits.
 */
export type Precision = number | 'float32'

/**
 * A composed operator. `compose` is its meaning, in other tensor operators; a backend may bring a fused kernel for it, and
 * one for its gradient, which the dispatcher then uses.
 */
export interface Op<A = unknown> {
  /** What profiles and errors call it. */
  readonly name: string
  /** Picks its fused kernel from those of a backend, which may lack it. */
  readonly kernel?: ((kernels: KernelTable) => KernelOf<A> | undefined) | undefined
  /** Picks the fused kernel of its gradient. */
  readonly gradient?: (kernels: KernelTable) => KernelOf<GradientAttrs<A>> | undefined
  /** Everything about the arguments that can be wrong, said here, once; may be absent if `compose` says it as well. */
  validate?(inputs: readonly Tensor[], attrs: A): void
  /** The outputs of a fused kernel: the operator's own and then what it saves for its backward kernel. */
  infer?(inputs: readonly Tensor[], attrs: A): readonly TensorSpec[]
  /** The meaning. Returns the operator's own outputs. */
  compose(inputs: readonly Tensor[], attrs: A, numbers: readonly number[]): readonly Tensor[]
  /** A better rule than differentiating the composition. Saved outputs of a fused kernel are not there for it. */
  readonly backward?: Backward<A>
  /** Arithmetic operations of a fused kernel, for profiles. */
  readonly flops?: Work<A>
  /**
   * Fused kernels of its gradient write by strides, so that gradients may lie in memory as the inputs do: those of parts
   * of one tensor as parts of one, which joining them again need not copy.
   */
  readonly placesGradients?: boolean
  /** How many outputs are the operator's own (the rest is saved for backward). Default 1. */
  readonly outputs?: number
  /** Kernels of its gradient do not read its outputs: they are given input 0 in their place, and need not be kept. */
  readonly unread?: boolean
  /** Its composition rounds nothing in between: operands of 16 bits are not converted for it, where no kernel takes them. */
  readonly roundsOnce?: boolean
  /** What it wants in `autocast`, which knows it of this library's own. Default: each operator that it is composed of by itself. */
  readonly precision?: Precision
}

/**
 * Runs a composed operator: the backend's fused kernel if it has one that takes these inputs, else the composition.
 *
 * A fused backward kernel is called with inputs [...inputs, ...outputs and saved, ...gradients of the outputs] and
 * attrs `{ ...attrs, needs }`; it fills one output per input with `needs[i]`, in order. Where there is none, the
 * composition is differentiated. See `adds` of KernelOf for what it may do besides.
 *
 * @throws ValueError where `kernel` of the operator is no function, and what its `validate` throws.
 * @example
 * import type { Op } from 'tilegrad'
 *
 * const DOUBLE: Op<object> = { name: 'double', compose: ([x]) => [x!.mul(2)] }
 * await apply(DOUBLE, [tensor([1, 2])], {})[0]?.toArray() // → [2, 4]
 */
export function apply<A extends object>(
  op: Op<A>,
  operands: readonly (Tensor | ArrayOperand)[],
  attrs: A,
  numbers = NO_NUMBERS,
): readonly Tensor[] {
  const inputs = tensorsOf(op.name, operands)
  return casting.now
    ? casting.now.run(op, inputs, (cast, wide) => dispatch(op, cast, attrs, numbers, wide))
    : dispatch(op, inputs, attrs, numbers)
}

/** `wide`: results are float32 where operands of 16 bits would have them rounded. */
function dispatch<A extends object>(
  op: Op<A>,
  inputs: readonly Tensor[],
  attrs: A,
  numbers: readonly number[],
  wide?: boolean,
): readonly Tensor[] {
  const backend = backendOf(op.name, inputs)
  op.validate?.(inputs, attrs)
  const kernel = op.infer && picked(op.name, op.kernel, backend.kernels)
  const halves = !op.roundsOnce && anyHalf(inputs)
  if (kernel) {
    const fits = (kernel.wide || !(wide && halves)) && takes(kernel, inputs, attrs)
    const all = (fits || halves) && fused(op, kernel, backend, inputs, attrs, numbers, fits, wide)
    if (all) {
      const own = op.outputs ?? 1
      const mine = all.slice(0, own)
      if (shouldRecord(inputs)) {
        record(op.name, inputs, mine, attrs, op.backward ?? fusedBackward(op, all), numbers)
        const node = mine[0].gradFn
        if (node && all.length > own) node.owned = all.slice(own)
      } else for (let i = own; i < all.length; i++) all[i].dispose()
      return mine
    }
  }
  if (halves) {
    // In float32, and rounded once, to what a kernel would fill.
    const specs = op.infer?.(inputs, attrs)
    const dtype = inputs
      .map((t) => t.dtype)
      .filter(isFloat)
      .reduce(promote)
    const { result, made } = collect(() => {
      const results = dispatch(op, widen(inputs), attrs, numbers)
      return wide ? results : results.map((t, i) => narrowed(t, specs ? specs[i].dtype : dtype))
    })
    settle(result, made as Tensor[], shouldRecord(inputs))
    return result
  }
  const listener = listening()
  const begun = listener?.begin(backend)
  const recording = shouldRecord(inputs)
  const rule = op.backward
  const compose = (): readonly Tensor[] => op.compose(inputs, attrs, numbers)
  const { result, made } = collect(recording && rule ? () => noGrad(compose) : compose)
  const outputs = settled(made, () => result.map((t) => (inputs.includes(t) ? alias(t) : t)))
  if (recording && rule) record(op.name, inputs, outputs, attrs, rule, numbers)
  settle(outputs, made as Tensor[], recording && !rule)
  listener?.composed(op.name, backend, begun)
  return outputs
}

/** The kernel that an operator picks, if it has one. */
function picked<K>(
  op: string,
  pick: ((kernels: KernelTable) => K) | undefined,
  kernels: KernelTable,
): K | undefined {
  if (pick && typeof pick !== 'function')
    throw new ValueError(
      `${op}: a kernel is picked by a function, (kernels) => kernels.softmax, not ${describe(pick)}`,
    )
  return pick?.(kernels)
}

/**
 * Runs a fused kernel: the operator's own outputs, and then what it saves; null if it takes no such inputs. Those of 16 bits
 * come to it as float32 where it does not take (`fits`) them, and its own outputs are rounded: what is saved for the backward pass
 * has 16 bits then, but for what the kernel saves beside.
 */
function fused<A extends object>(
  op: Op<A>,
  kernel: KernelOf<A>,
  backend: Backend,
  inputs: readonly Tensor[],
  attrs: A,
  numbers: readonly number[],
  fits: boolean,
  wide?: boolean,
): readonly Tensor[] | null {
  const go = (inputs: readonly Tensor[]): Tensor[] => {
    const outputs = allocateAll(backend, op.infer?.(inputs, attrs) ?? [], wide)
    settled(outputs, () =>
      run({ op: op.name, path: 'fused', backend, kernel, outputs, inputs, attrs, numbers, flops: op.flops }),
    )
    return outputs
  }
  if (fits) return go(inputs)
  const { result, made } = collect(() =>
    noGrad(() => {
      const widened = widen(inputs)
      if (!takes(kernel, widened, attrs)) return null
      const specs = wide ? undefined : op.infer?.(inputs, attrs)
      return go(widened).map((t, i) => (specs && i < (op.outputs ?? 1) ? narrowed(t, specs[i].dtype) : t))
    }),
  )
  drop(
    made.filter((t) => !result?.includes(t as Tensor)),
    'dispose()',
  )
  for (const t of result ?? []) track(t)
  return result
}

/** After a composition: its outputs belong to the caller's scope; its temporaries to the graph, or to nobody. */
function settle(outputs: readonly Tensor[], made: readonly Tensor[], onTape: boolean): void {
  const rest = made.filter((t) => !outputs.includes(t))
  const node = onTape ? outputs.find((t) => t.gradFn)?.gradFn : undefined
  if (node) {
    const owned = rest.filter((t) => !t.kept)
    for (const t of rest) track(t)
    node.owned = node.owned ? [...node.owned, ...owned] : owned
  } else drop(rest, 'dispose()')
  for (const t of outputs) track(t)
}

/** The rule of an operator that ran as a fused kernel: its backward kernel, or its composition differentiated. */
function fusedBackward<A extends object>(op: Op<A>, all: readonly Tensor[]): Backward<A> {
  return (node, douts, pass) => {
    const { inputs, outputs } = node
    const { needs, op: gradient } = gradientOf(op, inputs, all.length)
    const args: Tensor[] = []
    for (let i = 0; i < inputs.length; i++) args.push(node.input(i))
    for (let i = 0; i < outputs.length; i++) args.push(op.unread ? node.input(0) : node.output(i))
    for (let i = op.outputs ?? 1; i < all.length; i++) args.push(all[i])
    for (let i = 0; i < douts.length; i++) {
      const d = douts[i]
      const y = outputs[i]
      if (!d) args.push(fillLike(y))
      // Fused kernels want unit steps along the last dim, which a gradient expanded from a sum has not.
      else args.push(d.rank > 0 && d.strides[d.rank - 1] !== 1 ? contiguous(d) : d)
    }
    const kernel = picked(op.name, op.gradient, outputs[0].backend.kernels)
    const waiting = kernel?.adds && needs[0] ? pass.take(0) : null
    if (waiting) args.push(waiting)
    const attrs: GradientAttrs<A> = Object.assign(waiting ? { needs, adds: true } : { needs }, node.attrs)
    const made = apply(gradient, args, attrs, node.numbers)
    const grads: (Tensor | null)[] = []
    let next = 0
    for (let i = 0; i < needs.length; i++) grads.push(needs[i] ? made[next++] : null)
    return grads
  }
}

interface GradientOp<A> {
  readonly needs: readonly boolean[]
  readonly op: Op<GradientAttrs<A>>
}

const gradientOps = new WeakMap<object, Map<number, unknown>>()

/** The gradient of an operator as an operator: made once for each choice of inputs that need theirs. */
function gradientOf<A extends object>(op: Op<A>, inputs: readonly Tensor[], results: number): GradientOp<A> {
  const make = (): GradientOp<A> => {
    const needs = inputs.map((t) => t.requiresGrad)
    return { needs, op: backwardOp(op, inputs.length, results, needs) }
  }
  if (inputs.length > 16) return make()
  let known = gradientOps.get(op)
  if (!known) {
    known = new Map()
    gradientOps.set(op, known)
  }
  // The leading one tells how many there are.
  let choice = 1
  for (let i = 0; i < inputs.length; i++) choice = 2 * choice + (inputs[i].requiresGrad ? 1 : 0)
  const key = 2 ** 17 * results + choice
  let found = known.get(key) as GradientOp<A> | undefined
  if (!found) {
    found = make()
    known.set(key, found)
  }
  return found
}

/** The gradient of an operator: fused where a backend has a kernel for it, else by differentiating the composition. */
function backwardOp<A extends object>(
  op: Op<A>,
  inputs: number,
  results: number,
  needs: readonly boolean[],
): Op<GradientAttrs<A>> {
  const own = op.outputs ?? 1
  const { flops } = op
  return {
    name: `${op.name}Backward`,
    kernel: op.gradient,
    outputs: needs.filter(Boolean).length,
    // Two products for each one of the forward pass, and those of the forward pass again where nothing was stored.
    ...(flops && {
      flops: (all: readonly View[], attrs: A) =>
        2.5 * flops(all.slice(0, inputs), attrs, all.slice(inputs, inputs + results)),
    }),
    infer: (all) => {
      const wanted = all.filter((_, i) => needs[i])
      // What is recorded may be kept and changed: nothing shares memory then.
      if (op.placesGradients && !gradEnabled()) return placesLike(wanted)
      return wanted.map(({ shape, dtype }) => ({ shape, dtype }))
    },
    compose: (all, attrs, numbers) => {
      const douts = all.slice(inputs + results, inputs + results + own)
      const made = vjp(op, all.slice(0, inputs), attrs, numbers, douts, needs)
      if (attrs.adds) made[0] = addTensors(made[0], all[all.length - 1])
      return made
    },
  }
}

/** Gradients of a composition: recomputed with a tape of its own and differentiated. */
function vjp<A extends object>(
  op: Op<A>,
  inputs: readonly Tensor[],
  attrs: A,
  numbers: readonly number[],
  douts: readonly Tensor[],
  needs: readonly boolean[],
): Tensor[] {
  const higher = gradEnabled() && [...inputs, ...douts].some((t) => t.requiresGrad)
  return enableGrad(() => {
    const xs = inputs.map((t, i) => {
      if (!needs[i]) return t
      // On a recorded pass the copy stays connected to the input, so that second derivatives find their way.
      const x = higher && t.requiresGrad ? alias(t) : t.detach()
      if (!x.requiresGrad) x.requiresGrad = true
      return x
    })
    const ys = op.compose(xs, attrs, numbers)
    const wanted = xs.filter((_, i) => needs[i])
    const used = ys.map((y, i) => [y, douts[i]] as const).filter(([y]) => y.requiresGrad)
    if (used.length === 0) throw new GradError(`${op.name}: its composition has no gradient`)
    const grads = grad(
      used.map(([y]) => y),
      wanted,
      { gradOutputs: used.map(([, d]) => d), createGraph: higher, allowUnused: true },
    )
    return grads.map((g, i) => g ?? fillLike(wanted[i]))
  })
}

export type { Backward, GradNode, TensorSpec }
