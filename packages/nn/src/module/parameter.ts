import { type DType, dtypeInfo, expectOptions, expectTensor, type Tensor } from '@tilegrad/core'

/** Tensors that modules find, parameters and buffers. */

/** What a tensor is to the module that holds it. Transient buffers are not part of the state dict. @internal */
export type Role = 'parameter' | 'buffer' | 'transient'

/** The roles of tensors, beside the tensors and not on them, so that a parameter is an ordinary tensor. */
const roles = new WeakMap<Tensor, Role>()

/** @internal What the tensor is to a module, if anything. */
export const roleOf = (tensor: Tensor): Role | undefined => roles.get(tensor)

/** @internal Says what the tensor is to a module. */
export function mark(tensor: Tensor, role: Role): Tensor {
  roles.set(tensor, role)
  return tensor.keep()
}

/**
 * Parameters that no module has listed and no optimiser has got yet: those of a module in a #private field stay here,
 * learn nothing, and would never say so.
 */
const unlisted = new Set<WeakRef<Tensor>>()
const refs = new WeakMap<Tensor, WeakRef<Tensor>>()

/** @internal The dtype in which to add up what is kept in another: float32 for 16 bits, which do not take in small numbers. */
export const wide = (dtype: DType): DType => (dtypeInfo[dtype].bytes === 2 ? 'float32' : dtype)

/** @internal Somebody knows of this parameter. */
export function list(t: Tensor): void {
  const ref = refs.get(t)
  if (ref === undefined) return
  unlisted.delete(ref)
  refs.delete(t)
}

/** @internal A parameter with a gradient that nobody knows of, once each; the others stay to be looked at again. */
export function takeUnlisted(): Tensor | null {
  for (const ref of unlisted) {
    const t = ref.deref()
    if (t === undefined || t.disposed) unlisted.delete(ref)
    else if (t.grad) {
      list(t)
      return t
    }
  }
  return null
}

/** A result of a differentiated operator would drag its graph along. */
const leaf = (data: Tensor): Tensor => (data.isLeaf ? data : data.detach())

/**
 * Makes a tensor a parameter: a kept leaf that requires a gradient, which a module holding it finds by itself.
 *
 * @param data initial values, of any shape; used as it is, not copied.
 * @param options.requiresGrad default true; false for a parameter that starts frozen.
 * @returns `data` itself, or a detached view of it if it is the result of a differentiated operator.
 * @throws DTypeError if `data` is not floating; use `buffer` for such state.
 * @example
 * const scale = parameter(ones([3]))
 * scale.requiresGrad // → true
 */
export function parameter(data: Tensor, options: { requiresGrad?: boolean } = {}): Tensor {
  const { requiresGrad = true } = expectOptions('parameter', options, { requiresGrad: 1 })
  expectTensor('parameter', data)
  const tensor = leaf(data)
  tensor.requiresGrad = requiresGrad
  if (!roles.has(tensor)) {
    const ref = new WeakRef(tensor)
    refs.set(tensor, ref)
    unlisted.add(ref)
  }
  return mark(tensor, 'parameter')
}

/**
 * Makes a tensor a buffer: kept state of a module that is not learned, such as running statistics or a fixed table.
 *
 * @param data values of any shape and dtype; used as it is, not copied.
 * @param options.persistent default true; false keeps it out of `stateDict()`.
 * @example
 * const positions = buffer(arange(16), { persistent: false })
 */
export function buffer(data: Tensor, options: { persistent?: boolean } = {}): Tensor {
  const { persistent = true } = expectOptions('buffer', options, { persistent: 1 })
  expectTensor('buffer', data)
  return mark(leaf(data), persistent ? 'buffer' : 'transient')
}
