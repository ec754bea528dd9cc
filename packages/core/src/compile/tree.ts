import { GradError, show, ValueError } from '../errors.ts'
import { Tensor } from '../tensor/tensor.ts'

/** Tensors in arrays and plain objects, among other values: what a compiled function takes and returns. */
export type Tree =
  | { readonly kind: 'tensor'; readonly index: number }
  | { readonly kind: 'value'; readonly value: unknown }
  | { readonly kind: 'array'; readonly items: readonly Tree[] }
  | { readonly kind: 'object'; readonly entries: readonly (readonly [name: string, value: Tree])[] }

/** Takes a value apart. Tensors are numbered by `number`, which may refuse one. */
export function treeOf(
  what: string,
  value: unknown,
  number: (t: Tensor) => number,
  within: readonly unknown[] = [],
): Tree {
  if (within.includes(value)) throw new ValueError(`compile: ${what} contains itself`)
  const inside = typeof value === 'object' && value !== null ? [...within, value] : within
  if (value instanceof Tensor) return { kind: 'tensor', index: number(value) }
  if (Array.isArray(value)) return { kind: 'array', items: value.map((v) => treeOf(what, v, number, inside)) }
  if (typeof value !== 'object' || value === null) return { kind: 'value', value }
  if (Object.getPrototypeOf(value) !== Object.prototype && Object.getPrototypeOf(value) !== null)
    throw new ValueError(
      `compile: ${what} holds an object of class ${value.constructor?.name || 'without a name'}; it takes and returns tensors, plain values, and arrays and plain objects of them`,
    )
  const entries = Object.entries(value).map(([name, v]) => [name, treeOf(what, v, number, inside)] as const)
  return { kind: 'object', entries }
}

/** Puts a value together again, with other tensors. */
export function restored(tree: Tree, tensor: (index: number) => Tensor): unknown {
  switch (tree.kind) {
    case 'tensor':
      return tensor(tree.index)
    case 'value':
      return tree.value
    case 'array':
      return tree.items.map((item) => restored(item, tensor))
    case 'object':
      return Object.fromEntries(tree.entries.map(([name, value]) => [name, restored(value, tensor)]))
  }
}

const ids = new WeakMap<object, number>()
let count = 0

/** A text that is the same for the same value only. */
export function textOf(tree: Tree): string {
  switch (tree.kind) {
    case 'tensor':
      return `#${tree.index}`
    case 'value': {
      const { value } = tree
      if (typeof value === 'function' || (typeof value === 'object' && value !== null)) {
        const id = ids.get(value) ?? ++count
        ids.set(value, id)
        return `@${id}`
      }
      return Object.is(value, -0) ? '-0' : typeof value === 'string' ? JSON.stringify(value) : String(value)
    }
    case 'array':
      return `[${tree.items.map(textOf).join()}]`
    case 'object':
      return `{${tree.entries.map(([name, value]) => `${JSON.stringify(name)}:${textOf(value)}`).join()}}`
  }
}

/** What a tensor given to a compiled function is for it: its kind is part of what a recording is found by. */
export function kindOf(t: Tensor): string {
  if (t.gradFn !== null)
    throw new GradError(
      `compile: an argument ${show(t.shape)} is on the tape, and no gradient flows through a compiled function; pass its detach(), or compile the whole step`,
    )
  // A leaf is meant as itself: what is computed for it ends in its gradient.
  return t.requiresGrad ? `leaf ${t.id}` : `${t.backend.name} ${t.dtype} ${show(t.shape)}`
}
