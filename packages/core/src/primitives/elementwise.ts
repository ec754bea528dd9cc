import { type GradNode, gradEnabled, noGrad } from '../autograd/tape.ts'
import type { Backend, View } from '../dispatch/backend.ts'
import { run } from '../dispatch/call.ts'
import { type Numbers, numbersOf } from '../dispatch/capturing.ts'
import { casting } from '../dispatch/casting.ts'
import type { ElementwiseAttrs } from '../dispatch/kernels.ts'
import { type Primitive, tape } from '../dispatch/primitive.ts'
import { DTypeError, GradError, ShapeError, show } from '../errors.ts'
import { add as addExpr, mul as mulExpr } from '../expr/expr.ts'
import {
  expressionWork,
  gradient,
  type Program,
  program,
  specialize,
  type TypedProgram,
} from '../expr/program.ts'
import type { DType } from '../tensor/dtype.ts'
import { broadcastShapes, mayOverlap, numel, sameLayout, sameShape } from '../tensor/layout.ts'
import { type ArrayOperand, tensorsOf } from '../tensor/operands.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { backendOf } from './common.ts'

const NONE: readonly number[] = []

/** What numbers are typed by: those that may change are fractions, whatever they are now. */
const typesOf = (numbers: Numbers, now: readonly number[]): readonly number[] =>
  typeof numbers === 'function' ? now.map(() => 0.5) : now

const ELEMENTWISE: Primitive<ElementwiseAttrs> = {
  kernel: (kernels) => kernels.elementwise,
  flops: (_, { kernel }, [out]) => expressionWork(kernel) * numel(out.shape),
  backward,
}

/**
 * Applies an elementwise program to tensors that broadcast; all its outputs. Differentiable in every floating input.
 * `dtypes` forces the outputs' dtypes.
 *
 * @example
 * const both = program('both', 1, ([x]) => [expr.exp(x), expr.neg(x)])
 * applyProgramAll(both, [tensor([0, 1])]).length // → 2
 */
export function elementwiseAll(
  p: Program,
  operands: readonly (Tensor | ArrayOperand)[],
  numbers: Numbers = NONE,
  dtypes?: readonly DType[],
): Tensor[] {
  const inputs = tensorsOf(p.name, operands)
  const params = numbersOf(numbers)
  const backend = backendOf(p.name, inputs)
  const kernel = specialize(
    p,
    inputs.map((t) => t.dtype),
    typesOf(numbers, params),
    dtypes ?? casting.now?.results(p.name, inputs),
  )
  const shape =
    inputs.length === 1
      ? inputs[0].shape
      : broadcastShapes(
          p.name,
          inputs.map((t) => t.shape),
        )
  const outputs = kernel.exprs.map((x) => allocate(backend, shape, x.dtype))
  compute(backend, kernel, outputs, inputs, params)
  tape(ELEMENTWISE, p.name, outputs, inputs, { kernel }, params)
  return outputs
}

/**
 * Applies an elementwise program with one output.
 *
 * @example
 * const cube = program('cube', 1, ([x]) => expr.mul(expr.square(x), x))
 * await applyProgram(cube, [tensor([2])]).toArray() // → [8]
 */
export const elementwise = (
  p: Program,
  inputs: readonly (Tensor | ArrayOperand)[],
  params?: Numbers,
  dtype?: DType,
): Tensor => elementwiseAll(p, inputs, params, dtype && [dtype])[0]

/**
 * A new tensor from a program without inputs (constants, counters, random numbers).
 *
 * @example
 * const counted = program('counted', 0, () => expr.index)
 * await generateProgram(counted, defaultBackend(), [3], 'int32').toArray() // → [0, 1, 2]
 */
export function generate(
  p: Program,
  backend: Backend,
  shape: readonly number[],
  dtype: DType,
  numbers: Numbers = NONE,
): Tensor {
  const out = allocate(backend, shape, dtype)
  const params = numbersOf(numbers)
  compute(backend, specialize(p, [], typesOf(numbers, params), [dtype]), [out], [], params)
  return out
}

/** Runs a typed program: in one launch, or in as many as a backend needs that binds fewer operands than it has. */
export function compute(
  backend: Backend,
  kernel: TypedProgram,
  outputs: readonly Tensor[],
  inputs: readonly Tensor[],
  params: readonly number[],
): void {
  const { operands } = backend
  if (operands?.exceeded(outputs, inputs))
    operands.split(backend, kernel, outputs, inputs, (part, to, from) =>
      launch(backend, part, to, from, params),
    )
  else launch(backend, kernel, outputs, inputs, params)
}

/** Runs a typed program as one launch. */
export function launch(
  backend: Backend,
  program: TypedProgram,
  outputs: readonly View[],
  inputs: readonly View[],
  numbers: readonly number[],
): void {
  const kernel = ELEMENTWISE.kernel(backend.kernels)
  const attrs = { kernel: program }
  const { flops } = ELEMENTWISE
  run({ op: program.name, path: 'primitive', backend, kernel, outputs, inputs, attrs, numbers, flops })
}

/** Throws where `outputs` cannot be overwritten by a program of `inputs`: see `elementwiseInto`. */
export function checkInto(name: string, outputs: readonly Tensor[], inputs: readonly Tensor[]): void {
  const shape = outputs[0].shape
  const taping = gradEnabled()
  for (const t of outputs) {
    if (taping && t.requiresGrad) {
      throw new GradError(
        `${name}: a tensor that requires a gradient cannot be modified in place; do it inside noGrad(), or use the operator that returns a new tensor`,
      )
    }
    if (!sameShape(t.shape, shape))
      throw new ShapeError(`${name}: outputs ${show(shape)} and ${show(t.shape)} differ in shape`)
    if (t.isContiguous) continue
    for (let i = 0; i < t.strides.length; i++) {
      if (t.strides[i] === 0 && t.shape[i] > 1)
        throw new ShapeError(
          `${name}: an expanded tensor cannot be modified in place; its elements share memory. Copy it first with contiguous()`,
        )
    }
  }
  if (taping && inputs.some((t) => t.requiresGrad)) {
    throw new GradError(
      `${name}: writing in place is not recorded, and an input requires a gradient; do it inside noGrad(), or use the operator that returns a new tensor`,
    )
  }
  let same = true
  for (const t of inputs) same &&= sameShape(t.shape, shape)
  if (same) return
  if (!sameShape(broadcastShapes(name, [shape, ...inputs.map((t) => t.shape)]), shape)) {
    throw new ShapeError(
      `${name}: inputs ${inputs.map((t) => show(t.shape)).join(', ')} do not broadcast to the output's shape ${show(shape)}`,
    )
  }
}

/** Throws where results cannot be stored: a float in int32 or bool, an int32 in bool. Copying and filling convert. */
export function checkStored(p: Program, { lost }: TypedProgram): void {
  if (lost && p.inputs > 0 && p !== COPY)
    throw new DTypeError(
      `${p.name}: result type ${lost[0]} cannot be stored in ${lost[1]}; use the operator that returns a new tensor`,
    )
}

/** Whether an input may be overwritten before it is read, or one output by another: `elementwiseInto` then works on copies. */
export function clash(outputs: readonly Tensor[], inputs: readonly Tensor[]): boolean {
  for (let i = 0; i < outputs.length; i++) {
    const out = outputs[i]
    for (let k = 0; k < inputs.length; k++) if (spoils(out, inputs[k])) return true
    for (let j = 0; j < i; j++)
      if (outputs[j].storage === out.storage && mayOverlap(outputs[j], out)) return true
  }
  return false
}

/** An input that is the very same view as the output is read element by element before it is written. */
const spoils = (out: Tensor, t: Tensor): boolean =>
  t !== out && t.storage === out.storage && mayOverlap(t, out) && !sameLayout(t, out)

/**
 * Overwrites `outputs` (any views of one shape, which may also be inputs) in place, as if all inputs had been read before
 * anything is written: an input that lies across an output's memory is copied first. Not recorded.
 *
 * @throws GradError where a gradient would be lost, DTypeError where an output cannot hold the result, ShapeError for an
 * expanded output.
 * @example
 * const [x, twice] = [tensor([1, 2]), program('twice', 1, ([x]) => expr.mul(2, x))]
 * applyProgramInto([x], twice, [x])
 * await x.toArray() // → [2, 4]
 */
export function elementwiseInto(
  outputs: readonly Tensor[],
  p: Program,
  operands: readonly (Tensor | ArrayOperand)[],
  numbers: Numbers = NONE,
): void {
  const inputs = tensorsOf(p.name, operands)
  const params = numbersOf(numbers)
  checkInto(p.name, outputs, inputs)
  const backend = backendOf(p.name, [...outputs, ...inputs])
  const kernel = specialize(
    p,
    inputs.map((t) => t.dtype),
    typesOf(numbers, params),
    outputs.map((t) => t.dtype),
  )
  if (kernel.lost !== null) checkStored(p, kernel)
  if (clash(outputs, inputs)) apart(outputs, inputs, kernel, params)
  else compute(backend, kernel, outputs, inputs, params)
  for (const t of outputs) t.storage.version++
}

/** Runs on copies of the inputs that an output spoils, and stores outputs that others overlap afterwards, in order. */
function apart(
  outputs: readonly Tensor[],
  inputs: readonly Tensor[],
  kernel: TypedProgram,
  params: readonly number[],
): void {
  const { backend } = outputs[0]
  const made: Tensor[] = []
  const own = (t: Tensor): Tensor => {
    made.push(t)
    return t
  }
  noGrad(() => {
    try {
      const from = inputs.map((t) => (outputs.some((out) => spoils(out, t)) ? own(copy(t)) : t))
      const to = outputs.map((t, i) => (i === 0 ? t : own(allocate(t.backend, t.shape, t.dtype))))
      compute(backend, kernel, to, from, params)
      for (let i = 1; i < outputs.length; i++) copyInto(outputs[i], to[i])
    } finally {
      for (const t of made) t.dispose()
    }
  })
}

const FILL = program('full', 0, (_, [v]) => v, 1)
/** Multiplies by a number. */
export const TIMES = program('mul', 1, ([x], [n]) => mulExpr(x, n), 1)
const ADD = program('add', 2, ([a, b]) => addExpr(a, b))
/** Copies, converting where dtypes differ. */
export const COPY = program('copy', 1, ([x]) => x)

/** A new tensor with every element `value`. */
export const fill = (backend: Backend, shape: readonly number[], value: number, dtype: DType): Tensor =>
  generate(FILL, backend, shape, dtype, [value])

/** A new tensor of x's dtype, device and, unless another one is given, shape, with every element `value`. */
export const fillLike = (x: Tensor, value = 0, shape = x.shape): Tensor =>
  fill(x.backend, shape, value, x.dtype)

/** a + b; here because the engine accumulates with it. */
export const addTensors = (a: Tensor, b: Tensor): Tensor => elementwise(ADD, [a, b])

/** Adds b to a, in place; not recorded. */
export const addInto = (a: Tensor, b: Tensor): void => elementwiseInto([a], ADD, [a, b])

/** A contiguous copy, converted to `dtype` if given; differentiable. */
export const copy = (x: Tensor, dtype?: DType): Tensor => elementwise(COPY, [x], NONE, dtype)

/** Copies `source` (broadcast) over `target` in place. */
export const copyInto = (target: Tensor, source: Tensor | ArrayOperand): void =>
  elementwiseInto([target], COPY, [source])

function backward(node: GradNode<ElementwiseAttrs>, douts: readonly (Tensor | null)[]): (Tensor | null)[] {
  const p = node.attrs.kernel.program
  const wanted: number[] = []
  for (let i = 0; i < node.inputs.length; i++) if (node.needs(i)) wanted.push(i)
  const given: number[] = []
  for (let i = 0; i < douts.length; i++) if (douts[i]) given.push(i)
  const g = gradient(p, wanted, given)
  const out = new Array<Tensor | null>(node.inputs.length).fill(null)
  for (const { target, dout } of g.direct) out[target] = douts[dout]
  if (g.targets.length > 0) {
    if (g.sources.length === 0) {
      for (const t of g.targets) out[t] = fillLike(node.inputs[t])
      return out
    }
    const sources = g.sources.map((s) =>
      s.from === 'input'
        ? node.input(s.index)
        : s.from === 'output'
          ? node.output(s.index)
          : (douts[s.index] as Tensor),
    )
    const made = elementwiseAll(
      g.program,
      sources,
      node.numbers,
      g.targets.map((t) => node.inputs[t].dtype),
    )
    g.targets.forEach((t, i) => {
      out[t] = made[i]
    })
  }
  return out
}
