import { describeValue, expectOptions, ValueError } from '@tilegrad/core'
import { type ByteSource, nameOf, openText } from './bytes.ts'
import { DataError } from './collate.ts'
import {
  type Column,
  type ColumnType,
  columnOf,
  expectColumns,
  expectTypes,
  held,
  numberOf,
  type Table,
} from './table.ts'

/** Options of `readCsv` and `csvRows`. */
export interface CsvOptions {
  /** The first row has the names of the columns. Default: true; else they are '0', '1', …. */
  header?: boolean
  /** What stands between fields. Default: a comma. */
  delimiter?: string
  /** The columns to read. Default: all. */
  columns?: readonly string[]
  /** The types of columns by their names; a field that is none of it is an error. Default: what the fields look like. */
  types?: Readonly<Record<string, ColumnType>>
  /** How the text is encoded. Default: utf-8. */
  encoding?: string
}

const NAMES = { header: 1, delimiter: 1, columns: 1, types: 1, encoding: 1 } as const

/** A row that is longer is none: a quote is open somewhere. */
const longestRow = 2 ** 24

/** Rows of one piece of the file, and where they stand. */
interface Rows {
  readonly names: readonly string[]
  readonly rows: readonly string[][]
  /** The line in which a row of these begins, counted from 1. */
  line(row: number): number
}

interface Parsed {
  readonly data: string[][]
  readonly errors: readonly { readonly message: string; readonly row?: number }[]
  readonly meta: { readonly cursor: number }
}

function linesIn(text: string, end: number): number {
  let lines = 0
  for (let at = text.indexOf('\n'); at >= 0 && at < end; at = text.indexOf('\n', at + 1)) lines++
  return lines
}

async function* pieces(op: string, source: ByteSource, options: CsvOptions): AsyncGenerator<Rows> {
  const { header = true, delimiter = ',', encoding } = options
  if (typeof delimiter !== 'string' || delimiter.length !== 1 || delimiter === '"' || delimiter === '\n')
    throw new ValueError(
      `${op}: delimiter is one character, such as ';' or '\\t', got ${describeValue(delimiter)}`,
    )
  const { default: papa } = await import('papaparse')
  const parse = (text: string, open: boolean, preview = 0): Parsed =>
    new papa.Parser({ delimiter, newline: '\n', ...(preview > 0 && { preview, fastMode: false }) }).parse(
      text,
      0,
      open,
    ) as Parsed
  const name = nameOf(source)
  let names: string[] | null = null
  let lines = 1
  let rest = ''

  function* take(open: boolean): Generator<Rows> {
    const text = rest
    const { data, errors, meta } = parse(text, open)
    const first = lines
    const line = (row: number): number =>
      first + (row === 0 ? 0 : linesIn(text, parse(text, true, row).meta.cursor))
    if (errors.length > 0) {
      const [{ message, row = 0 }] = errors
      throw new DataError(`${op}: ${name}, line ${line(row)}: ${message.toLowerCase()}`)
    }
    const end = open ? meta.cursor : text.length
    rest = text.slice(end)
    lines += linesIn(text, end)
    if (rest.length > longestRow)
      throw new DataError(`${op}: ${name}, line ${lines}: a row is longer than 16 MiB; is a quote open?`)
    let skip = 0
    if (!names && data.length > 0) {
      names = header ? data[0] : data[0].map((_, i) => `${i}`)
      skip = header ? 1 : 0
      const twice = names.find((column, i) => names?.indexOf(column) !== i)
      if (twice !== undefined)
        throw new DataError(`${op}: ${name}, line ${line(0)}: two columns are called '${twice}'`)
    }
    if (!names || data.length === skip) return
    const places: number[] = []
    const rows: string[][] = []
    for (let i = skip; i < data.length; i++) {
      const row = data[i]
      // An empty line is no row.
      if (row.length === 1 && row[0] === '') continue
      if (row.length !== names.length)
        throw new DataError(
          `${op}: ${name}, line ${line(i)}: has ${row.length} ${row.length === 1 ? 'field' : 'fields'}, expected ${names.length}`,
        )
      rows.push(row)
      places.push(i)
    }
    if (rows.length > 0) yield { names, rows, line: (row) => line(places[row]) }
  }

  let cut = ''
  for await (const piece of openText(op, source, encoding)) {
    // A line may end between two pieces.
    const text = cut + piece
    cut = text.endsWith('\r') ? '\r' : ''
    rest += text.slice(0, text.length - cut.length).replaceAll('\r\n', '\n')
    yield* take(true)
  }
  rest += cut
  if (rest !== '') yield* take(false)
  if (!names) throw new DataError(`${op}: ${name} has no rows`)
}

function wanted(
  op: string,
  { columns, types = {} }: CsvOptions,
  names: readonly string[],
): { name: string; at: number }[] {
  expectColumns(op, [...(columns ?? []), ...Object.keys(types)], names)
  return (columns ?? names).map((name) => ({ name, at: names.indexOf(name) }))
}

function fieldOf(
  op: string,
  source: ByteSource,
  text: string,
  type: ColumnType,
  name: string,
  line: () => number,
): number {
  const number = numberOf(text)
  const value = number === null ? null : held(number, type)
  if (value === null)
    throw new DataError(`${op}: ${nameOf(source)}, line ${line()}, column '${name}': '${text}' is no ${type}`)
  return value
}

const checked = (op: string, options: CsvOptions): CsvOptions => {
  expectTypes(op, expectOptions(op, options, NAMES).types ?? {})
  return options
}

/**
 * Reads a CSV file (RFC 4180) into columns: an Int32Array where all fields are whole numbers that fit, a Float64Array where
 * some are too large for that, a Float32Array where all are numbers (empty ones are NaN), else an array of texts; `types` says it in advance. The file is read by pieces.
 *
 * @param source a path, a URL, bytes, a Blob or a stream.
 * @throws DataError with line and column where fields are not what they should be, rows are not of one length or a quote
 * stays open; ValueError for columns that are not there.
 * @example
 * import { readCsv } from 'tilegrad/data'
 *
 * const bytes = new TextEncoder().encode('size,name\n1.5,a\n2,b\n')
 * const { size, name } = await readCsv(bytes)
 * size // → [1.5, 2]
 * name // → [a, b]
 */
export async function readCsv(source: ByteSource, options: CsvOptions = {}): Promise<Table> {
  const { types = {} } = checked('readCsv', options)
  let columns: { name: string; at: number; texts: string[] | null; numbers: number[] | null }[] | null = null
  for await (const { names, rows, line } of pieces('readCsv', source, options)) {
    columns ??= wanted('readCsv', options, names).map((column) => ({
      ...column,
      // Both, until one of them is known not to be it.
      texts: (types[column.name] ?? 'string') === 'string' ? [] : null,
      numbers: types[column.name] === 'string' ? null : [],
    }))
    for (const column of columns) {
      const type = types[column.name]
      rows.forEach((row, i) => {
        const text = row[column.at]
        if (type && type !== 'string')
          column.numbers?.push(fieldOf('readCsv', source, text, type, column.name, () => line(i)))
        else {
          const number = column.numbers && numberOf(text)
          if (number === null) column.numbers = null
          else column.numbers?.push(number)
        }
        column.texts?.push(text)
      })
    }
  }
  return Object.fromEntries(
    (columns ?? []).map(({ name, texts, numbers }): [string, Column] => [
      name,
      numbers ? columnOf(numbers, types[name]) : (texts ?? []),
    ]),
  )
}

/**
 * The rows of a CSV file one after the other, as records, for files that are too big to hold: an iterable dataset. Fields that
 * look like numbers are numbers, unless `types` says otherwise. Each loop opens the source anew.
 *
 * @throws DataError as `readCsv`, while it goes on.
 * @example
 * import { csvRows, DataLoader } from 'tilegrad/data'
 *
 * const bytes = new TextEncoder().encode('x,y\n1,2\n3,4\n')
 * for await (const { x, y } of new DataLoader(csvRows(bytes), { batchSize: 2 })) console.log(x, y)
 */
export function csvRows(
  source: ByteSource,
  options: CsvOptions = {},
): AsyncIterable<Record<string, number | string>> {
  const { types = {} } = checked('csvRows', options)
  return {
    async *[Symbol.asyncIterator]() {
      for await (const { names, rows, line } of pieces('csvRows', source, options)) {
        const columns = wanted('csvRows', options, names)
        for (const [i, row] of rows.entries())
          yield Object.fromEntries(
            columns.map(({ name, at }) => {
              const [text, type] = [row[at], types[name]]
              if (type === 'string') return [name, text]
              if (type) return [name, fieldOf('csvRows', source, text, type, name, () => line(i))]
              return [name, numberOf(text) ?? text]
            }),
          )
      }
    },
  }
}
