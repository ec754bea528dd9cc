import type { DType } from '../tensor/dtype.ts'
import { type Layout, sliceLayout } from '../tensor/layout.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import type { Backend } from './backend.ts'

/** What an operator's kernel will fill, and where it lies in memory. */
export interface TensorSpec {
  /** The size of each dim. */
  readonly shape: readonly number[]
  /** The type of the elements. */
  readonly dtype: DType
  /** Its dims from the outermost in memory to the innermost; row-major if missing. */
  readonly order?: readonly number[] | undefined
  /** It is a part of a larger tensor, from `start` on along `dim`. All parts of the same tensor share its memory. */
  readonly part?: { readonly of: TensorSpec; readonly dim: number; readonly start: number }
}

/** Tensors with undefined contents; `wide`: of float32, whatever is asked for. */
export function allocateAll(backend: Backend, specs: readonly TensorSpec[], wide?: boolean): Tensor[] {
  const all = new Array<Tensor>(specs.length)
  const wholes: Map<TensorSpec, Tensor> = new Map()
  let count = 0
  try {
    for (; count < specs.length; count++) {
      const { shape, dtype, order, part } = specs[count]
      if (!part) {
        all[count] = allocate(backend, shape, wide ? 'float32' : dtype, order)
        continue
      }
      const { of, dim, start } = part
      let whole = wholes.get(of)
      if (!whole) {
        whole = allocate(backend, of.shape, of.dtype, of.order)
        wholes.set(of, whole)
      }
      all[count] = whole.viewAs(sliceLayout('allocate', whole, dim, start, start + shape[dim], 1))
    }
  } catch (error) {
    for (let i = 0; i < count; i++) all[i].dispose()
    throw error
  } finally {
    // The memory lives as long as its parts.
    for (const whole of wholes.values()) whole.dispose()
  }
  return all
}

/**
 * Places that follow those of `tensors`: dims in the same order in memory, and neighbours in one storage (the queries,
 * keys and values of one projection) as neighbours in one. Steps along the last dim stay 1.
 */
export function placesLike(tensors: readonly Tensor[]): readonly TensorSpec[] {
  const specs: TensorSpec[] = tensors.map((t) => ({ shape: t.shape, dtype: t.dtype, order: orderOf(t) }))
  for (let first = 0; first < tensors.length; first++) {
    const { storage, dtype, shape, strides } = tensors[first]
    const isMate = (t: Tensor): boolean => t.storage === storage && t.dtype === dtype
    if (tensors.findIndex(isMate) < first || tensors.findLastIndex(isMate) === first) continue
    const group = [...tensors.keys()].filter((i) => isMate(tensors[i]))
    group.sort((a, b) => tensors[a].offset - tensors[b].offset)
    const dim = sharedDim(group.map((i) => tensors[i]))
    if (dim < 0) continue
    const size = group.reduce((sum, i) => sum + tensors[i].shape[dim], 0)
    const of = { shape: shape.with(dim, size), dtype, order: orderOf({ shape, strides, offset: 0 }) }
    let start = 0
    for (const i of group) {
      specs[i] = { shape: tensors[i].shape, dtype, part: { of, dim, start } }
      start += tensors[i].shape[dim]
    }
  }
  return specs
}

/** The dim along which views, in the order of their offsets, follow one another without a gap; −1 if none. */
function sharedDim(views: readonly Layout[]): number {
  const [first, ...rest] = views
  const fits = (dim: number): boolean => {
    let end = first.offset + first.shape[dim] * first.strides[dim]
    return rest.every(({ shape, strides, offset }) => {
      const follows = offset === end
      end += shape[dim] * strides[dim]
      return (
        follows &&
        shape.length === first.shape.length &&
        shape.every((n, d) => d === dim || n === first.shape[d]) &&
        strides.every((step, d) => step === first.strides[d])
      )
    })
  }
  return first.shape.findIndex((_, dim) => first.strides[dim] > 0 && fits(dim))
}

/** Dims by their strides, the largest first; nothing where that is no order of memory, or does not end with the last dim. */
function orderOf({ shape, strides }: Layout): readonly number[] | undefined {
  let falling = true
  for (let d = 0; d < strides.length; d++) {
    if (strides[d] <= 0) return undefined
    if (d > 0 && strides[d] > strides[d - 1]) falling = false
  }
  if (falling) return undefined
  // By insertion: a call of sort takes longer than all the rest.
  const order = [0]
  for (let d = 1; d < shape.length; d++) {
    let at = d
    for (; at > 0 && strides[order[at - 1]] < strides[d]; at--) order[at] = order[at - 1]
    order[at] = d
  }
  return order[shape.length - 1] === shape.length - 1 ? order : undefined
}
