import { describe } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'

/** Numbers or booleans, nested to any depth. */
export type Nested = number | boolean | readonly Nested[]

/** Typed arrays of the elements that tensors have. */
export const isTyped = (data: unknown): boolean => ArrayBuffer.isView(data) && !(data instanceof DataView)

/** The shape of nested arrays and their elements in a row. @throws ShapeError if they are ragged. */
export function flatOf(op: string, data: Nested): { shape: number[]; list: (number | boolean)[] } {
  const shape: number[] = []
  for (let at: Nested | undefined = data; Array.isArray(at); at = (at as readonly Nested[])[0])
    if (shape.push(at.length) > 64) throw new ShapeError(`${op}: arrays are nested more than 64 deep`)
  const list: (number | boolean)[] = []
  flatten(op, data, shape, 0, list)
  return { shape, list }
}

function flatten(
  op: string,
  data: Nested,
  shape: readonly number[],
  depth: number,
  out: (number | boolean)[],
): void {
  if (depth === shape.length) {
    if (typeof data !== 'number' && typeof data !== 'boolean') throw noNumber(op, data, shape, depth)
    out.push(data)
    return
  }
  if (!Array.isArray(data) || data.length !== shape[depth]) {
    throw new ShapeError(
      `${op}: ragged nesting at depth ${depth}; expected ${shape[depth]} entries everywhere for shape ${show(shape)}`,
    )
  }
  for (const item of data) flatten(op, item, shape, depth + 1, out)
}

function noNumber(op: string, data: unknown, shape: readonly number[], depth: number): Error {
  if (Array.isArray(data))
    return new ShapeError(
      `${op}: ragged nesting; expected numbers at depth ${depth} for shape ${show(shape)}`,
    )
  const what = describe(data)
  const fix = what.startsWith('a tensor') ? '; join tensors with stack or cat' : ''
  return new ValueError(
    `${op}: takes numbers or booleans, nested in arrays, or a typed array, got ${what}${fix}`,
  )
}
