import { type GradNode, type PassOf, shouldRecord } from '../autograd/tape.ts'
import { expectOptions } from '../checks.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { ShapeError, show } from '../errors.ts'
import { derive } from '../expr/derive.ts'
import type { Expr } from '../expr/expr.ts'
import * as e from '../expr/expr.ts'
import { type Program, program, specialize, type TypedProgram } from '../expr/program.ts'
import { copy, elementwise, elementwiseAll } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { reshapeView, transposeView } from '../primitives/views.ts'
import { promote } from '../tensor/dtype.ts'
import { numel, sameShape } from '../tensor/layout.ts'
import { asTensor, expectTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { type Activation, activations, expectActivation } from './activations.ts'
import { matmul } from './linalg.ts'
import { add } from './pointwise.ts'

/** What `linear` does with the product before it is stored. */
export interface LinearEpilogue {
  /** The activation of the sum of product and bias; default none. */
  activation?: Activation | undefined
  /** A tensor of the result's shape that is added after the activation. */
  residual?: Tensor | null | undefined
}

/**
 * activation(x · weightᵀ + bias) + residual: x (…, K), weight (N, K), bias (N) and residual (…, N) → (…, N). A backend
 * may compute it in one kernel, all that follows the product while an element is at hand. The result has the dtype that x
 * and weight promote to, and residual where there is one; a bias of more bits is added before rounding.
 *
 * @throws ShapeError if the sizes do not fit, ValueError for an unknown activation.
 * @example
 * const [x, weight, bias] = [randn([2, 5, 4]), randn([3, 4]), zeros([3])]
 * linear(x, weight, bias, { activation: 'gelu' }).shape // → 2,5,3
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor | null,
  options: LinearEpilogue = {},
): Tensor {
  const { activation, residual } = expectOptions('linear', options, { activation: 1, residual: 1 })
  if (activation !== undefined) expectActivation('linear', activation)
  const inputs = [asTensor('linear', x, weight), weight]
  if (bias) inputs.push(bias)
  if (residual) inputs.push(residual)
  for (let i = 1; i < inputs.length; i++) expectTensor('linear', inputs[i])
  // The activation's argument is needed for its gradient: then it is an output, too.
  const keeps = activation !== undefined && shouldRecord(inputs)
  const form = formOf(bias ? 1 : 0, activation, residual ? 1 : 0, keeps)
  return apply(form.op, inputs, form.attrs)[0]
}

/** Attributes of the fused kernel. The program's input 0 is the product's element, the next are the inputs after weight. */
export interface LinearAttrs {
  /** What is computed of each element of the product. */
  readonly epilogue: TypedProgram
  /** What that was typed of, for kernels of extras and outputs that are not float32. */
  readonly program?: Program
  /** Numbers to a block where the weight is of 8 bits: see `quantizedLinear`. Its scales are the input after it. */
  readonly blockSize?: number
}

/** Attributes of a product whose rows are normalised first. */
export interface NormLinearAttrs extends LinearAttrs {
  /** The norm over rows, as `layerNorm` and `rmsNorm` compute it, and which parameters of it are among the inputs. */
  readonly norm: {
    readonly kind: 'layer' | 'rms'
    readonly eps: number
    readonly affine: 'none' | 'weight' | 'both'
  }
}

declare module '../dispatch/kernels.ts' {
  interface FusedKernels {
    /** A product of matrices with what follows it. */
    readonly linear?: KernelOf<LinearAttrs>
    /**
     * A product whose rows are normalised first: no operator's own, but what `compile` makes of a norm and the product that
     * reads it. The inputs are those of `linear`, and then the parameters of the norm; weights may be of any type.
     */
    readonly norm_linear?: KernelOf<NormLinearAttrs>
  }
}

/** What follows a product, and the operators that it is part of. */
export interface Form {
  readonly op: Op<LinearAttrs>
  readonly attrs: LinearAttrs & { readonly program: Program }
}

/** The operators made so far, by activation and then by the other choices. */
const forms = new Map<Activation | undefined, Form[]>()

/** One operator for each combination of what follows the product. */
export function formOf(
  bias: 0 | 1,
  activation: Activation | undefined,
  residual: 0 | 1,
  keeps: boolean,
): Form {
  let known = forms.get(activation)
  if (!known) {
    known = []
    forms.set(activation, known)
  }
  const choice = bias + 2 * residual + (keeps ? 4 : 0)
  let form: Form | undefined = known[choice]
  if (!form) {
    const act = activation && activations[activation]
    const epilogue = program('linear', 1 + bias + residual, (inputs) => {
      const sum = bias ? e.add(inputs[0], inputs[1]) : inputs[0]
      const value = act ? act(sum) : sum
      const y = residual ? e.add(value, inputs[1 + bias]) : value
      return keeps ? [y, sum] : y
    })
    const float32 = Array.from({ length: epilogue.inputs }, () => 'float32' as const)
    form = {
      op: linearOp(epilogue, bias, residual, act),
      attrs: { epilogue: specialize(epilogue, float32, []), program: epilogue },
    }
    known[choice] = form
  }
  return form
}

function linearOp(
  epilogue: Program,
  bias: 0 | 1,
  residual: 0 | 1,
  act: ((x: Expr) => Expr) | undefined,
): Op<LinearAttrs> {
  const outputs = epilogue.exprs.length
  const slope = act && program('linear.grad', 2, ([h, d]) => derive(act(h), d).get(0) as Expr)
  const plain = bias + residual === 0 && !act

  /** Gradients of x, weight, bias and residual, in tensor operators: the rule holds for any order. */
  const backward = (
    node: GradNode<LinearAttrs>,
    [dy, dh]: readonly (Tensor | null)[],
    pass: PassOf,
  ): (Tensor | null)[] => {
    let d = slope && dy ? elementwise(slope, [node.output(1), dy]) : dy
    if (dh) d = d ? add(d, dh) : dh
    const out = new Array<Tensor | null>(node.inputs.length).fill(null)
    if (residual) out[2 + bias] = dy
    if (!d) return out
    const [x, w] = [node.input(0), node.input(1)]
    // Beside a residual of float32 operands of 16 bits give a y of float32: these products are of 16 bits as well.
    const dtype = promote(x.dtype, w.dtype)
    if (d.dtype !== dtype) d = copy(d, dtype)
    if (bias) out[2] = d
    const [n, k] = w.rank === 1 ? [1, w.shape[0]] : w.shape
    const rows = numel(x.shape.slice(0, -1))
    const tall = reshapeView(d, [rows, n])
    if (node.needs(0)) {
      // Where several layers read x, each adds what those before it have computed.
      const waiting = w.rank === 2 ? pass.take(0) : null
      out[0] = waiting
        ? linear(d, transposeView(w, 0, 1), null, { residual: waiting })
        : reshapeView(matmulPrimitive('linear', tall, reshapeView(w, [n, k])), x.shape)
    }
    if (node.needs(1)) {
      const product = matmulPrimitive('linear', transposeView(tall, 0, 1), reshapeView(x, [rows, k]))
      out[1] = reshapeView(product, w.shape)
    }
    return out
  }

  return {
    name: 'linear',
    kernel: (kernels) => kernels.linear,
    outputs,
    validate: (inputs) => {
      const [x, w] = inputs
      const k = x.shape[x.rank - 1]
      if (w.rank > 2 || w.rank === 0 || x.rank === 0 || w.shape[w.rank - 1] !== k) {
        throw new ShapeError(
          `linear: input ${show(x.shape)} and weight ${show(w.shape)} do not fit; expected weight [outFeatures, ${k ?? 'inFeatures'}]`,
        )
      }
      const shape = outputShape(x, w)
      const b = bias ? inputs[2] : null
      if (b && !broadcasts(b.shape, shape))
        throw new ShapeError(
          `linear: bias ${show(b.shape)} does not fit weight ${show(w.shape)}; expected [${w.rank === 2 ? w.shape[0] : ''}]`,
        )
      const r = residual ? inputs[2 + bias] : null
      if (r && !sameShape(r.shape, shape))
        throw new ShapeError(`linear: residual ${show(r.shape)} must have the result's shape ${show(shape)}`)
    },
    infer: ([x, w, ...rest]) => {
      const dtype = promote(x.dtype, w.dtype)
      const y = promote(dtype, (residual ? rest[bias] : x).dtype)
      return epilogue.exprs.map((_, i) => ({ shape: outputShape(x, w), dtype: i ? dtype : y }))
    },
    flops: ([x, w]) => 2 * numel(x.shape) * w.shape[0],
    roundsOnce: plain,
    compose: (inputs) => {
      const [x, w, ...rest] = inputs
      const y = matmul(x, w.rank === 1 ? w : transposeView(w, 0, 1))
      return plain ? [y] : elementwiseAll(epilogue, [y, ...rest])
    },
    backward,
  }
}

const outputShape = (x: Tensor, w: Tensor): readonly number[] =>
  w.rank === 1 ? x.shape.slice(0, -1) : [...x.shape.slice(0, -1), w.shape[0]]

const broadcasts = (from: readonly number[], to: readonly number[]): boolean =>
  from.length <= to.length && from.every((n, i) => n === 1 || n === to[to.length - from.length + i])
