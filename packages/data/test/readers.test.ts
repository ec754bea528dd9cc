import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { afterAll, describe, expect, test } from 'vitest'
import {
  type ByteSource,
  csvRows,
  DataError,
  DataLoader,
  parquetRows,
  readCsv,
  readIdx,
  readParquet,
} from '../src/index.ts'

const folder = mkdtempSync(join(tmpdir(), 'tilegrad-data-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text)
const file = (name: string, bytes: Uint8Array | string): string => {
  const path = join(folder, name)
  writeFileSync(path, bytes)
  return path
}
/** Bytes in pieces of a size, as a stream gives them. */
const pieces = (bytes: Uint8Array, size: number): (() => AsyncIterable<Uint8Array>) =>
  async function* () {
    for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
  }

const idx = (type: number, shape: number[], data: number[]): Uint8Array => {
  const head = Buffer.alloc(4 + 4 * shape.length)
  head.set([0, 0, type, shape.length])
  shape.forEach((size, i) => head.writeUInt32BE(size, 4 + 4 * i))
  return Uint8Array.of(...head, ...data)
}

describe('sources', () => {
  const bytes = idx(8, [2, 2], [1, 2, 3, 255])

  test('paths, URLs, bytes, blobs, streams, pieces and functions, packed or not', async () => {
    const path = file('a.idx', bytes)
    const zipped = gzipSync(bytes)
    const sources: ByteSource[] = [
      path,
      pathToFileURL(path),
      pathToFileURL(path).href,
      file('a.idx.gz', zipped),
      bytes,
      bytes.slice().buffer,
      new Blob([bytes.slice().buffer]),
      new Blob([bytes.slice().buffer]).stream(),
      pieces(bytes, 3),
      pieces(zipped, 1),
      async () => path,
    ]
    for (const source of sources) {
      const x = await readIdx(source)
      expect([x.shape, x.dtype, [...x.dataSync()]]).toEqual([[2, 2], 'int32', [1, 2, 3, 255]])
    }
  })

  test('a server, and one that has no such file', async () => {
    const server = createServer((request, response) => {
      response.statusCode = request.url === '/a' ? 200 : 404
      response.end(bytes)
    })
    await new Promise<void>((resolve) => server.listen(0, resolve))
    try {
      const { port } = server.address() as { port: number }
      const at = `http://localhost:${port}/`
      expect((await readIdx(`${at}a`)).shape).toEqual([2, 2])
      await expect(readIdx(new URL(`${at}b`))).rejects.toThrow(
        `readIdx: ${at}b cannot be read from byte 0 on: the server answers 404 Not Found`,
      )
    } finally {
      server.closeAllConnections()
      server.close()
    }
  })

  test('what is not there, damaged or read already', async () => {
    await expect(readIdx(join(folder, 'none'))).rejects.toThrow(
      /readIdx: .*none cannot be read from byte 0 on: ENOENT/,
    )
    const zipped = gzipSync(
      idx(
        8,
        [100_000],
        Array.from({ length: 100_000 }, (_, i) => (i * i) % 251),
      ),
    )
    await expect(readIdx(zipped.subarray(0, zipped.length - 20))).rejects.toThrow(DataError)
    await expect(readIdx(zipped.map((byte, i) => (i === 300 ? byte ^ 255 : byte)))).rejects.toThrow(DataError)
    const stream = new Blob([bytes.slice().buffer]).stream()
    await readIdx(stream)
    await expect(readIdx(stream)).rejects.toThrow(/the stream has been read already; .* pass a function/)
    await expect(readIdx(3 as never)).rejects.toThrow(/readIdx: reads a path, .* got 3/)
  })
})

describe('readIdx', () => {
  test('all types, the highest byte first', async () => {
    const f = Buffer.alloc(12)
    f.writeFloatBE(1.5, 0)
    f.writeDoubleBE(-2.25, 4)
    const cases: [Uint8Array, string, number[]][] = [
      [idx(9, [2], [255, 1]), 'int32', [-1, 1]],
      [idx(11, [1], [255, 0]), 'int32', [-256]],
      [idx(12, [1], [0, 1, 0, 2]), 'int32', [65538]],
      [idx(13, [1], [...f.subarray(0, 4)]), 'float32', [1.5]],
      [idx(14, [1], [...f.subarray(4)]), 'float64', [-2.25]],
      [idx(8, [0, 28], []), 'int32', []],
    ]
    for (const [bytes, dtype, want] of cases) {
      const x = await readIdx(bytes)
      expect([x.dtype, [...x.dataSync()]]).toEqual([dtype, want])
    }
    expect((await readIdx(cases[0][0], { dtype: 'float32' })).dtype).toBe('float32')
  })

  test.each<[string, Uint8Array, string]>([
    [
      'nothing',
      new Uint8Array(0),
      'at byte 0, expected 0, 0 and a type of 8, 9, 11 … 14, got nothing; this is no IDX file',
    ],
    ['other files', utf8('PK..'), 'got 80, 75, 46; this is no IDX file'],
    ['an unknown type', idx(10, [1], [1]), 'got 0, 0, 10'],
    [
      'a header that is cut off',
      idx(8, [3, 4], []).subarray(0, 9),
      'cut off at byte 9, within its header of 12 bytes',
    ],
    [
      'data that are cut off',
      idx(8, [3], [1, 2]),
      'cut off at byte 10: shape [3] takes 11 bytes, the file has 10',
    ],
    ['more than it says', idx(8, [1], [1, 2]), 'goes on at byte 9: shape [1] takes 9 bytes, the file has 10'],
  ])('%s', async (_, bytes, message) => {
    await expect(readIdx(bytes)).rejects.toThrow(message)
  })
})

describe('CSV', () => {
  test('columns are what their fields are', async () => {
    const text = '\uFEFFid,big,x,name,none\r\n1,3000000000,1.5,"a, ""b""\r\nc",\r\n-2,4,,é,\r\n\r\n'
    const table = await readCsv(utf8(text))
    expect(table).toEqual({
      id: Int32Array.of(1, -2),
      big: Float64Array.of(3e9, 4),
      x: Float32Array.of(1.5, NaN),
      name: ['a, "b"\nc', 'é'],
      none: Float32Array.of(NaN, NaN),
    })
    expect(await readCsv(utf8('1;0x10\n2;3'), { header: false, delimiter: ';' })).toEqual({
      0: Int32Array.of(1, 2),
      1: ['0x10', '3'],
    })
    expect(await readCsv(utf8('a,b\n1,2'), { columns: ['b'], types: { b: 'string' } })).toEqual({ b: ['2'] })
    expect(await readCsv(utf8('a\n1'), { types: { a: 'float64' } })).toEqual({ a: Float64Array.of(1) })
  })

  const quoted = (field: string): string =>
    /[",\n\r]/.test(field) || field.trim() !== field ? `"${field.replaceAll('"', '""')}"` : field
  const field = fc.stringMatching(/^[ab",\n 1é]{1,6}$/)

  test('what was written comes back, whatever pieces the file comes in', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(field, field), { minLength: 1, maxLength: 8 }),
        fc.integer({ min: 1, max: 9 }),
        fc.constantFrom('\n', '\r\n'),
        fc.boolean(),
        async (rows, size, newline, end) => {
          const lines = [['p', 'q'], ...rows].map((row) => row.map(quoted).join(','))
          const bytes = utf8(lines.join(newline) + (end ? newline : ''))
          const got = []
          for await (const row of csvRows(pieces(bytes, size), { types: { p: 'string', q: 'string' } }))
            got.push([row.p, row.q])
          expect(got).toEqual(rows)
        },
      ),
      { numRuns: 150, seed: 7 },
    )
  })

  test('rows stream into a loader, again in each epoch', async () => {
    const n = 5000
    const path = file('rows.csv', `x,y\n${Array.from({ length: n }, (_, i) => `${i},${i / 2}`).join('\n')}\n`)
    const loader = new DataLoader(csvRows(path) as AsyncIterable<{ x: number; y: number }>, {
      batchSize: 512,
    })
    for (let epoch = 0; epoch < 2; epoch++) {
      let [count, sum] = [0, 0]
      for await (const { x, y } of loader) {
        count += x.shape[0]
        sum += y.sum().itemSync()
      }
      // Sums of up to 512 halves are exact in float32.
      expect([count, sum]).toEqual([n, (n * (n - 1)) / 4])
    }
  })

  const many = `a,b\n${'1,2\n'.repeat(40_000)}`
  test.each<[string, string, object, string]>([
    ['a row too short', 'a,b\n1,2\n"x\ny",2\n3\n', {}, 'line 5: has 1 field, expected 2'],
    ['far down', `${many}1,2,3\n`, {}, 'line 40002: has 3 fields, expected 2'],
    ['an open quote', 'a,b\n1,2\n3,"4\n', {}, 'line 3: quoted field unterminated'],
    ['a broken quote', 'a,b\n1,2\n3,"4"x\n5,6', {}, 'line 3: trailing quote'],
    ['a wrong field', `${many}1,x\n`, { types: { b: 'int32' } }, "line 40002, column 'b': 'x' is no int32"],
    ['a fraction', 'a\n\n\n1.5\n', { types: { a: 'int32' } }, "line 4, column 'a': '1.5' is no int32"],
    [
      'no number where one must be',
      'a,b\n1,\n',
      { types: { b: 'int32' } },
      "line 2, column 'b': '' is no int32",
    ],
    ['a missing column', 'a,b\n1,2', { columns: ['c'] }, "there is no column 'c'; there are a, b"],
    ['columns of one name', 'a,a\n1,2', {}, "line 1: two columns are called 'a'"],
    ['nothing', '', {}, 'has no rows'],
    [
      'a wrong type',
      'a\n1',
      { types: { a: 'int64' } },
      "the type of 'a' is one of float32, float64, int32, string",
    ],
    ['a wrong delimiter', 'a\n1', { delimiter: '::' }, 'delimiter is one character'],
  ])('%s', async (_, text, options, message) => {
    await expect(readCsv(utf8(text), options)).rejects.toThrow(message)
  })

  test('bytes that are no text, and other encodings', async () => {
    const latin = Uint8Array.of(97, 10, 233, 10)
    await expect(readCsv(latin)).rejects.toThrow(/is not utf-8 between bytes 0 and 4; pass { encoding }/)
    expect(await readCsv(latin, { encoding: 'latin1' })).toEqual({ a: ['é'] })
  })
})

describe('Parquet', () => {
  const write = (options: object = {}): Uint8Array =>
    new Uint8Array(
      parquetWriteBuffer({
        columnData: [
          { name: 'label', data: [3, 1, 4, 1, 5], type: 'INT32' },
          { name: 'id', data: [1n, 2n, 3n, 4n, 2n ** 40n], type: 'INT64' },
          { name: 'x', data: [0.5, null, 2.5, 3, 4], type: 'DOUBLE', nullable: true },
          { name: 'text', data: ['a', 'b', 'c', 'd', 'é'], type: 'STRING' },
        ],
        rowGroupSize: 2,
        ...options,
      }),
    )
  const want = {
    label: Int32Array.of(3, 1, 4, 1, 5),
    id: Float64Array.of(1, 2, 3, 4, 2 ** 40),
    x: Float32Array.of(0.5, NaN, 2.5, 3, 4),
    text: ['a', 'b', 'c', 'd', 'é'],
  }

  test('columns come from paths, bytes, blobs and streams', async () => {
    const bytes = write()
    for (const source of [
      file('a.parquet', bytes),
      bytes,
      new Blob([bytes.slice().buffer]),
      pieces(bytes, 100),
    ])
      expect(await readParquet(source)).toEqual(want)
    expect(await readParquet(bytes, { columns: ['text', 'label'] })).toEqual({
      text: want.text,
      label: want.label,
    })
  })

  test('other ways of packing', async () => {
    const packed = write({ codec: 'GZIP', compressors: { GZIP: (bytes: Uint8Array) => gzipSync(bytes) } })
    expect(await readParquet(packed)).toEqual(want)
  })

  test('rows stream into a loader', async () => {
    const labels: number[] = []
    for await (const { label } of new DataLoader(parquetRows(write(), { columns: ['label', 'text'] }), {
      batchSize: 2,
    }))
      labels.push(...(label as { dataSync(): Iterable<number> }).dataSync())
    expect(labels).toEqual([3, 1, 4, 1, 5])
  })

  test('damaged files say where', async () => {
    const bytes = write()
    await expect(readParquet(utf8('not parquet at all'))).rejects.toThrow(
      /readParquet: the data, the footer before byte 18: /,
    )
    await expect(readParquet(bytes.subarray(0, 90))).rejects.toThrow(/the footer before byte 90/)
    const damaged = bytes.map((byte, i) => (i >= 4 && i < 60 ? 255 : byte))
    await expect(readParquet(damaged)).rejects.toThrow(/column 'label', row group 0 at byte 4: /)
    await expect(readParquet(bytes, { columns: ['none'] })).rejects.toThrow(
      "readParquet: there is no column 'none'; there are label, id, x, text",
    )
    await expect(readParquet(join(folder, 'none.parquet'))).rejects.toThrow(/none.parquet: ENOENT/)
  })
})
