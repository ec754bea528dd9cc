import { expectOptions } from '@tilegrad/core'
import type { AsyncBuffer, FileMetaData, ParquetReadOptions } from 'hyparquet'
import { type ByteSource, messageOf, nameOf, nodeFs, pathOf, readBytes } from './bytes.ts'
import { DataError } from './collate.ts'
import { type Column, columnOf, expectColumns, type Table } from './table.ts'

/** Options of `readParquet` and `parquetRows`. */
export interface ParquetOptions {
  /** The columns to read; others are not fetched. Default: all. */
  columns?: readonly string[]
}

interface Opened {
  readonly file: AsyncBuffer
  close(): Promise<void>
}

const bytesOf = (bytes: Uint8Array): Opened => ({
  file: {
    byteLength: bytes.byteLength,
    slice: (start, end) => Uint8Array.from(bytes.subarray(start, end)).buffer,
  },
  close: async () => {},
})

/** A file of which parts are read as they are needed, where that is possible. */
async function open(source: ByteSource): Promise<Opened> {
  if (typeof source === 'function') return open(await source())
  const path = pathOf(source)
  const fs = nodeFs()
  if (path !== null && fs) {
    const handle = await fs.promises.open(path)
    const { size } = await handle.stat()
    return {
      file: {
        byteLength: size,
        async slice(start, end = size) {
          const bytes = new Uint8Array(end - start)
          const { bytesRead } = await handle.read(bytes, 0, bytes.length, start)
          if (bytesRead < bytes.length) throw new Error(`cut off at byte ${start + bytesRead}`)
          return bytes.buffer
        },
      },
      close: () => handle.close(),
    }
  }
  if (typeof source === 'string' || source instanceof URL) {
    const { asyncBufferFromUrl } = await import('hyparquet')
    return { file: await asyncBufferFromUrl({ url: String(source) }), close: async () => {} }
  }
  if (source instanceof Blob)
    return {
      file: { byteLength: source.size, slice: (start, end) => source.slice(start, end).arrayBuffer() },
      close: async () => {},
    }
  return bytesOf(await readBytes('parquet', source))
}

/** A group of rows, and how to read a column of it. */
interface Group {
  readonly from: number
  readonly rows: number
  column(name: string): Promise<ArrayLike<unknown>>
}

async function* groups(
  op: string,
  source: ByteSource,
  { columns }: ParquetOptions,
): AsyncGenerator<{ names: readonly string[]; group: Group | null }> {
  const where = nameOf(source)
  const fail = (error: unknown, place = ''): never => {
    throw new DataError(`${op}: ${where}${place}: ${messageOf(error)}`, { cause: error })
  }
  const { parquetMetadataAsync, parquetRead } = await import('hyparquet')
  const { file, close } = await open(source).catch((error: unknown) =>
    error instanceof DataError ? Promise.reject(error) : fail(error),
  )
  try {
    const metadata: FileMetaData = await parquetMetadataAsync(file).catch((error: unknown) =>
      fail(error, `, the footer before byte ${file.byteLength}`),
    )
    const leaves = metadata.row_groups.flatMap((group) => group.columns)
    const tops = metadata.schema[0].num_children ?? 0
    const there: string[] = []
    // The schema is a tree, written depth first.
    for (let i = 1; there.length < tops; ) {
      there.push(metadata.schema[i].name)
      for (let open = 1; open > 0; i++) open += (metadata.schema[i].num_children ?? 0) - 1
    }
    expectColumns(op, columns ?? [], there)
    const names = columns ?? there
    // Without those of these two, the file is read without the others' code.
    const packed = leaves.some(
      ({ meta_data }) => meta_data && !['UNCOMPRESSED', 'SNAPPY'].includes(meta_data.codec),
    )
    const more: Partial<ParquetReadOptions> = packed
      ? { compressors: (await import('hyparquet-compressors')).compressors }
      : {}
    yield { names, group: null }
    let from = 0
    for (const [g, { num_rows, columns: chunks }] of metadata.row_groups.entries()) {
      const [start, rows] = [from, Number(num_rows)]
      from += rows
      const column = async (name: string): Promise<ArrayLike<unknown>> => {
        const values: unknown[] = []
        const chunk = chunks.find(({ meta_data }) => meta_data?.path_in_schema[0] === name)?.meta_data
        const at = chunk?.dictionary_page_offset ?? chunk?.data_page_offset
        const place = `, column '${name}', row group ${g}${at === undefined ? '' : ` at byte ${at}`}`
        await parquetRead({
          file,
          metadata,
          columns: [name],
          rowStart: start,
          rowEnd: start + rows,
          ...more,
          onComplete: (got) => {
            for (const row of got as unknown[][]) values.push(row[0])
          },
        } as ParquetReadOptions).catch((error: unknown) => fail(error, place))
        if (values.length !== rows) fail(new Error(`has ${values.length} values, expected ${rows}`), place)
        return values
      }
      yield { names, group: { from: start, rows, column } }
    }
  } finally {
    await close()
  }
}

const isNumeric = (value: unknown): boolean =>
  typeof value === 'number' || typeof value === 'bigint' || value === null || value === undefined

/** The values of a column as numbers, if they are: what is missing is NaN. */
function narrowed(values: readonly unknown[]): Column {
  if (values.length === 0 || !values.every(isNumeric) || values.every((value) => value == null))
    return values as unknown[]
  const numbers = values.map((value) => (value == null ? NaN : Number(value)))
  return columnOf(numbers)
}

/**
 * Reads a Parquet file into columns: an Int32Array where all values are whole numbers that fit, a Float64Array where some are
 * too large for that, a Float32Array where all are numbers (missing ones are NaN), else an array of what is there. Of a path,
 * a URL or a Blob only the columns that are asked for are read.
 *
 * @param source a path, a URL, bytes, a Blob or a stream.
 * @throws DataError with the column, the row group and its byte where the file is damaged; ValueError for columns that are not
 * there.
 * @example
 * import { readParquet } from 'tilegrad/data'
 *
 * const read = (path: string) => readParquet(path, { columns: ['text', 'label'] })
 * read.length // → 1
 */
export async function readParquet(source: ByteSource, options: ParquetOptions = {}): Promise<Table> {
  expectOptions('readParquet', options, { columns: 1 })
  const columns = new Map<string, unknown[]>()
  for await (const { names, group } of groups('readParquet', source, options)) {
    for (const name of names) {
      const values = columns.get(name) ?? []
      if (group) for (const value of Array.from(await group.column(name))) values.push(value)
      columns.set(name, values)
    }
  }
  return Object.fromEntries([...columns].map(([name, values]) => [name, narrowed(values)]))
}

/**
 * The rows of a Parquet file one after the other, as records, of which one row group is held at a time: an iterable dataset.
 *
 * @throws DataError as `readParquet`, while it goes on.
 * @example
 * import { DataLoader, parquetRows } from 'tilegrad/data'
 *
 * const loader = (path: string) => new DataLoader(parquetRows(path), { batchSize: 32 })
 * loader.length // → 1
 */
export function parquetRows(
  source: ByteSource,
  options: ParquetOptions = {},
): AsyncIterable<Record<string, unknown>> {
  expectOptions('parquetRows', options, { columns: 1 })
  return {
    async *[Symbol.asyncIterator]() {
      for await (const { names, group } of groups('parquetRows', source, options)) {
        if (!group) continue
        const columns = await Promise.all(names.map((name) => group.column(name)))
        for (let i = 0; i < group.rows; i++)
          yield Object.fromEntries(names.map((name, c) => [name, columns[c][i]]))
      }
    },
  }
}
