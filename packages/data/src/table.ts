/** Columns of tables, from texts or values to typed arrays. */

import { describeValue, ValueError } from '@tilegrad/core'

/** What a column is read as. */
export type ColumnType = 'float32' | 'float64' | 'int32' | 'string'

/** A column: numbers, or what else stood there. */
export type Column = Float32Array | Float64Array | Int32Array | unknown[]

/** Columns by their names, in the order of the file. */
export type Table = Record<string, Column>

const KNOWN = ['float32', 'float64', 'int32', 'string']

/** Checks the types that someone wants of columns. */
export function expectTypes(op: string, types: Readonly<Record<string, ColumnType>>): void {
  for (const [name, type] of Object.entries(types))
    if (!KNOWN.includes(type))
      throw new ValueError(
        `${op}: the type of '${name}' is one of ${KNOWN.join(', ')}, got ${describeValue(type)}`,
      )
}

/** Checks that columns that someone names are there. */
export function expectColumns(op: string, wanted: readonly string[], there: readonly string[]): void {
  for (const name of wanted)
    if (!there.includes(name))
      throw new ValueError(`${op}: there is no column '${name}'; there are ${there.join(', ')}`)
}

const isWhole = (value: number): boolean => value === (value | 0)

/** The number that a text is, as a spreadsheet means it: an empty one is a number that is missing. */
export const numberOf = (text: string): number | null => {
  const trimmed = text.trim()
  if (trimmed === '' || /^nan$/i.test(trimmed)) return NaN
  // Number('0x10') is one to JavaScript only.
  if (!/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(trimmed) && !/^[-+]?inf(inity)?$/i.test(trimmed))
    return null
  return /inf/i.test(trimmed) ? (trimmed.startsWith('-') ? -Infinity : Infinity) : Number(trimmed)
}

/** A number as a type holds it, or null where it cannot. */
export function held(value: number, type: ColumnType): number | null {
  return type === 'int32' && !isWhole(value) ? null : value
}

/** Numbers as a column: int32 if all are whole and fit, float64 if some are whole and do not, else float32. */
export function columnOf(values: readonly number[], type?: ColumnType): Column {
  if (type === 'float64') return Float64Array.from(values)
  if (type === 'int32' || (type === undefined && values.every(isWhole))) return Int32Array.from(values)
  // Numbers of things, such as identifiers: they would change.
  const large = (value: number): boolean => Number.isInteger(value) && Math.abs(value) >= 2 ** 31
  if (type === undefined && values.some(large)) return Float64Array.from(values)
  return Float32Array.from(values)
}
