import { DTypeError, ones, reference, TilegradError, tensor, ValueError, zeros } from '@tilegrad/core'
import {
  Linear,
  loadSafetensors,
  readSafetensors,
  type StoredDType,
  saveSafetensors,
  storedValues,
  writeSafetensors,
} from '@tilegrad/nn'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { values } from './helpers.ts'

/** A file of any header, right or wrong, over `data` bytes of data. */
function file(header: unknown, data = 0, length?: bigint): Uint8Array {
  const text = typeof header === 'string' ? header : JSON.stringify(header)
  const json = header instanceof Uint8Array ? header : new TextEncoder().encode(text)
  const bytes = new Uint8Array(8 + json.length + data)
  new DataView(bytes.buffer).setBigUint64(0, length ?? BigInt(json.length), true)
  bytes.set(json, 8)
  return bytes
}
const entry = (dtype: string, shape: unknown, ...range: unknown[]): unknown => ({
  dtype,
  shape,
  data_offsets: range,
})
const stored = (dtype: StoredDType, ...bytes: number[]): number[] => [
  ...storedValues({ dtype, shape: [], bytes: Uint8Array.from(bytes) }),
]

describe('a round trip', () => {
  it('keeps dtypes, shapes, values, names and metadata, views made contiguous', async () => {
    const tensors = {
      'h.0.weight': tensor([
        [1, -2, Number.NaN],
        [Infinity, 1e-45, 0.1],
      ]),
      double: tensor(Float64Array.of(0.1, -1e300)),
      flags: tensor([true, false, true]),
      indices: tensor([2 ** 31 - 1, -(2 ** 31)], { dtype: 'int32' }),
      scalar: tensor(2.5),
      empty: zeros([0, 3]),
      constructor: ones([2]),
      ['__proto__']: ones([1]),
      'ключ "\\\u{1F600}': ones([1, 1]),
    }
    const bytes = await saveSafetensors({ ...tensors, turned: tensors['h.0.weight'].T }, { made: 'here' })
    expect(readSafetensors(bytes).metadata).toEqual(new Map([['made', 'here']]))
    const back = loadSafetensors(bytes, { device: reference })
    expect(Object.keys(back).sort()).toEqual([...Object.keys(tensors), 'turned'].sort())
    for (const [name, t] of Object.entries(tensors)) {
      expect([name, back[name].dtype, back[name].shape]).toEqual([name, t.dtype, t.shape])
      expect(values(back[name])).toEqual(values(t))
    }
    expect(values(back.turned)).toEqual(values(tensors['h.0.weight'].T))
    expect(back.turned.shape).toEqual([3, 2])
  })

  it('takes a module’s state dict', async () => {
    const [a, b] = [new Linear(3, 2), new Linear(3, 2)]
    b.loadStateDict(loadSafetensors(await saveSafetensors(a.stateDict())))
    expect(values(b.weight)).toEqual(values(a.weight))
    // What an object has by nature is no entry of the module's.
    const dict = { ...a.stateDict(), constructor: ones([1]) }
    expect(() => b.loadStateDict(dict)).toThrow(/unexpected: constructor/)
  })

  it('of nothing is a file', async () => {
    expect(loadSafetensors(await saveSafetensors({}))).toEqual({})
  })

  it('is aligned to every element size, the header to 8 bytes', async () => {
    const bytes = await saveSafetensors({
      a: tensor([true]),
      b: tensor([1]),
      c: tensor(Float64Array.of(1)),
      d: tensor([false]),
    })
    for (const [name, { dtype, bytes: b }] of readSafetensors(bytes).tensors)
      expect([name, b.byteOffset % { F64: 8, F32: 4, BOOL: 1 }[dtype as 'F64']]).toEqual([name, 0])
  })

  it('copies nothing while reading', async () => {
    const bytes = await saveSafetensors({ a: tensor([1, 2]) })
    const a = readSafetensors(bytes).tensors.get('a')
    if (!a) throw new Error('lost')
    expect(a.bytes.buffer).toBe(bytes.buffer)
    expect(storedValues(a).buffer).toBe(bytes.buffer)
  })

  it('may lie anywhere in memory', async () => {
    const bytes = await saveSafetensors({ a: tensor([1, 2]), b: tensor(Float64Array.of(3)) })
    for (let shift = 0; shift < 9; shift++) {
      // Also as Node's Buffer, whose slice() does not copy.
      for (const all of [new Uint8Array(bytes.length + shift), Buffer.alloc(bytes.length + shift)]) {
        const moved = all.subarray(shift)
        moved.set(bytes)
        const back = loadSafetensors(moved, { device: reference })
        expect([...values(back.a), ...values(back.b)]).toEqual([1, 2, 3])
      }
    }
  })
})

describe('conversions', () => {
  it('F16: normal, subnormal, infinite, NaN and both zeros', () => {
    const halves: [bits: number, value: number][] = [
      [0x3c00, 1],
      [0xc000, -2],
      [0x3555, 0.333251953125],
      [0x7bff, 65504],
      [0x0400, 2 ** -14],
      [0x0001, 2 ** -24],
      [0x83ff, -1023 * 2 ** -24],
      [0x7c00, Infinity],
      [0xfc00, -Infinity],
      [0x7e01, Number.NaN],
      [0x0000, 0],
      [0x8000, -0],
    ]
    const bytes = halves.flatMap(([bits]) => [bits & 255, bits >> 8])
    expect(stored('F16', ...bytes)).toEqual(halves.map(([, value]) => value))
  })

  it('BF16 is the upper half of a float32', () => {
    expect(stored('BF16', 0x80, 0x3f, 0x49, 0xc0, 0x80, 0x7f, 0x01, 0x00)).toEqual([
      1,
      -3.140625,
      Infinity,
      2 ** -133,
    ])
  })

  it('integers become int32, BOOL bool', () => {
    expect(stored('I8', 255, 127)).toEqual([-1, 127])
    expect(stored('U8', 255, 127)).toEqual([255, 127])
    expect(stored('I16', 255, 255, 1, 2)).toEqual([-1, 513])
    expect(stored('I64', 255, 255, 255, 127, 0, 0, 0, 0)).toEqual([2 ** 31 - 1])
    expect(stored('I64', 0, 0, 0, 128, 255, 255, 255, 255)).toEqual([-(2 ** 31)])
    const dict = loadSafetensors(
      writeSafetensors([
        ['u', { dtype: 'U8', shape: [2], bytes: Uint8Array.of(3, 200) }],
        ['b', { dtype: 'BOOL', shape: [2], bytes: Uint8Array.of(0, 7) }],
        ['h', { dtype: 'F16', shape: [], bytes: Uint8Array.of(0, 0x3c) }],
      ]),
      { device: reference },
    )
    expect([dict.u.dtype, dict.b.dtype, dict.h.dtype]).toEqual(['int32', 'bool', 'float32'])
    expect([values(dict.u), values(dict.b), values(dict.h)]).toEqual([[3, 200], [0, 1], [1]])
  })

  it('F16 and BF16 stay what they are where asked, and are written as such, bit for bit', async () => {
    const bits = Uint8Array.of(0, 0x3c, 1, 0x80, 0x34, 0x12, 0, 0x7c)
    const file = writeSafetensors([
      ['h', { dtype: 'F16', shape: [2, 2], bytes: bits }],
      ['b', { dtype: 'BF16', shape: [4], bytes: bits }],
      ['f', { dtype: 'F32', shape: [1], bytes: Uint8Array.of(0, 0, 0x80, 0x3f) }],
    ])
    const dict = loadSafetensors(file, { device: reference, widen: false })
    expect([dict.h.dtype, dict.b.dtype, dict.f.dtype]).toEqual(['float16', 'bfloat16', 'float32'])
    expect(dict.h.storage.bytes).toBe(8)
    const wide = loadSafetensors(file, { device: reference })
    expect(values(dict.h)).toEqual(values(wide.h))
    expect(values(dict.b)).toEqual(values(wide.b))
    const again = readSafetensors(await saveSafetensors(dict)).tensors
    for (const [name, stored] of readSafetensors(file).tensors) expect(again.get(name)).toEqual(stored)
    expect(() => loadSafetensors(file, { wide: false } as object)).toThrow(/did you mean 'widen'\?/)
  })

  it('refuses an I64 that int32 cannot hold', () => {
    expect(() => stored('I64', 0, 0, 0, 128, 0, 0, 0, 0)).toThrow(/2147483648 does not fit int32/)
    expect(() => stored('I64', 1, 0, 0, 0, 0, 0, 0, 128)).toThrow(ValueError)
  })
})

describe('malformed files are refused, saying why', () => {
  const huge = 2 ** 53 - 1
  it.each([
    ['nothing', new Uint8Array(0), /this one has 0/],
    ['seven bytes', new Uint8Array(7), /this one has 7/],
    ['a longer header than the file', file({}, 0, 3n), /header should be 3 bytes long, but the file has 2/],
    ['a header of 2⁶⁴ − 1 bytes', file({}, 0, 2n ** 64n - 1n), /should be 18446744073709551615 bytes/],
    ['a shorter header', file({ a: entry('U8', [1], 0, 1) }, 1, 9n), /no JSON object in UTF-8/],
    ['an empty header', file('', 0), /does not begin with '\{'/],
    ['no JSON', file('{"a":'), /no JSON object/],
    ['a list', file([]), /does not begin/],
    ['leading space', file(' {}'), /does not begin/],
    ['a byte order mark', file('\ufeff{}'), /does not begin/],
    ['Latin-1', file(Uint8Array.of(123, 34, 0xe9, 34, 58, 49, 125)), /no JSON object in UTF-8/],
    ['nesting without end', file(`{"a":${'['.repeat(1e5)}`), /no JSON object/],
    ['two tensors of one name', file('{"a":1,"b":2,"a":3}'), /names 'a' twice/],
    ['one name, spelt differently', file('{"a":1,"\\u0061" :3}'), /names 'a' twice/],
    ['a field twice', file('{"a":{"dtype":"U8","dtype":"I8"}}'), /names 'dtype' twice/],
    ['an entry that is a number', file({ a: 1 }), /'a' must be \{ dtype, shape, data_offsets \}, not 1/],
    ['an entry that is null', file({ a: null }), /not null/],
    ['an entry that is a list', file({ a: [1] }), /not \[1\]/],
    ['no shape', file({ a: { dtype: 'U8', data_offsets: [0, 0] } }), /shape undefined/],
    ['a negative size', file({ a: entry('U8', [-1], 0, 0) }), /shape \[-1\]/],
    ['a fraction', file({ a: entry('U8', [0.5], 0, 0) }), /shape \[0.5\]/],
    ['a size as text', file({ a: entry('U8', ['1'], 0, 1) }, 1), /shape \["1"\]/],
    ['minus nothing', file('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), /shape \[0\]/],
    ['a size beyond 2⁵³', file('{"a":{"dtype":"U8","shape":[1e99],"data_offsets":[0,0]}}'), /shape/],
    ['a product beyond all', file({ a: entry('F64', [huge, huge, huge], 0, 8) }, 8), /takes \S+ bytes/],
    ['the same, empty', file({ a: entry('U8', [...new Array(30).fill(huge), 0], 0, 0) }), /takes NaN bytes/],
    ['one offset', file({ a: entry('U8', [0], 0) }), /data_offsets \[0\]/],
    ['offsets backwards', file({ a: entry('U8', [1], 1, 0) }, 1), /data_offsets \[1,0\]/],
    ['a negative offset', file({ a: entry('U8', [1], -1, 0) }, 1), /data_offsets \[-1,0\]/],
    [
      'offsets not of the size',
      file({ a: entry('F32', [2], 0, 4) }, 4),
      /takes 8 bytes; data_offsets hold 4/,
    ],
    ['an offset behind the end', file({ a: entry('U8', [3], 0, 3) }, 2), /'a' ends at byte 3 .* has 2/],
    ['huge offsets', file({ a: entry('U8', [1], huge - 1, huge) }, 1), /ends at byte 9007199254740991/],
    ['bytes too many', file({ a: entry('U8', [1], 0, 1) }, 3), /2 bytes follow the last tensor/],
    ['bytes and no tensor', file({}, 1), /1 bytes follow/],
    ['a gap', file({ a: entry('U8', [1], 1, 2) }, 2), /'a' begins at byte 1 .* expected 0/],
    [
      'an overlap',
      file({ a: entry('U8', [2], 0, 2), b: entry('U8', [2], 1, 3) }, 3),
      /'b' begins at byte 1 .* expected 2/,
    ],
    [
      'two tensors in one place',
      file({ a: entry('U8', [2], 0, 2), b: entry('U8', [2], 0, 2) }, 2),
      /neither overlap/,
    ],
    [
      'metadata that is a list',
      file({ __metadata__: [] }),
      /__metadata__ must map names to strings, not \[\]/,
    ],
    ['metadata of numbers', file({ __metadata__: { a: 1 } }), /__metadata__ 'a' must be a string, not 1/],
  ])('%s', (_, bytes, message) => {
    expect(() => readSafetensors(bytes)).toThrow(message)
    expect(() => loadSafetensors(bytes)).toThrow(ValueError)
  })

  it('a dtype that is not read', () => {
    for (const dtype of ['F8_E4M3', 'f32', 'constructor', '']) {
      expect(() => readSafetensors(file({ a: entry(dtype, [1], 0, 1) }, 1))).toThrow(DTypeError)
    }
    expect(() => readSafetensors(file({ a: entry('U64', [1], 0, 8) }, 8))).toThrow(
      /'a' has dtype "U64"; expected one of F64, I64, F32, I32, F16, BF16, I16, I8, U8, BOOL/,
    )
  })

  it('touches no prototype', () => {
    const bytes = file(
      '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{"__proto__":"x"}}',
      1,
    )
    const dict = loadSafetensors(bytes)
    expect(Object.keys(dict)).toEqual(['__proto__'])
    expect(readSafetensors(bytes).metadata.get('__proto__')).toBe('x')
    expect(Object.hasOwn(Object.prototype, 'dtype')).toBe(false)
  })

  it('in a short message, however much is nested, long or named', () => {
    const deep = `${'['.repeat(1e5)}${']'.repeat(1e5)}`
    const long = 'x'.repeat(1e6)
    const headers = [
      `{"a":${deep}}`,
      `{"a":{"dtype":${deep},"shape":[],"data_offsets":[0,4]}}`,
      `{"a":{"dtype":"F32","shape":${deep},"data_offsets":[0,4]}}`,
      `{"a":{"dtype":"F32","shape":[1],"data_offsets":${deep}}}`,
      `{"__metadata__":{"a":${deep}}}`,
      `{"__metadata__":{"${long}":1}}`,
      `{"${long}":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`,
      `{"${long}":{"dtype":"${long}","shape":[1],"data_offsets":[0,4]}}`,
      `{"${long}":1,"${long}":2}`,
      `{"a":{"dtype":"F32","shape":[${'1,'.repeat(1e6)}1],"data_offsets":[0,5]}}`,
      `{"a":{"dtype":"F32","shape":[${'1,'.repeat(64)}1],"data_offsets":[0,4]}}`,
    ]
    for (const header of headers) {
      let error: unknown
      try {
        readSafetensors(file(header, 4))
      } catch (caught) {
        error = caught
      }
      expect(error).toBeInstanceOf(TilegradError)
      expect((error as Error).message.length).toBeLessThan(300)
    }
  })

  it('so are wrong tensors to write', async () => {
    await expect(saveSafetensors({ __metadata__: ones([1]) })).rejects.toThrow(/can be called '__metadata__'/)
    const one = { dtype: 'F32', shape: [1], bytes: new Uint8Array(4) } as const
    expect(() =>
      writeSafetensors([
        ['a', one],
        ['a', one],
      ]),
    ).toThrow(/two tensors are called 'a'/)
    expect(() => writeSafetensors([['a', { ...one, shape: [2] }]])).toThrow(
      /takes 8 bytes; data_offsets hold 4/,
    )
  })
})

describe('properties', () => {
  const sizes = { F64: 8, I64: 8, F32: 4, I32: 4, F16: 2, BF16: 2, I16: 2, I8: 1, U8: 1, BOOL: 1 }
  const anyTensor = fc
    .tuple(
      fc.constantFrom(...(Object.keys(sizes) as StoredDType[])),
      fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
    )
    .chain(([dtype, shape]) => {
      const length = shape.reduce((n, d) => n * d, sizes[dtype])
      return fc.uint8Array({ minLength: length, maxLength: length }).map((bytes) => ({ dtype, shape, bytes }))
    })
  const anyFile = fc.record({
    tensors: fc
      .uniqueArray(fc.tuple(fc.string({ unit: 'grapheme' }), anyTensor), {
        selector: ([name]) => name,
        maxLength: 6,
      })
      .filter((list) => list.every(([name]) => name !== '__metadata__')),
    metadata: fc.dictionary(fc.string({ unit: 'grapheme' }), fc.string({ unit: 'grapheme' })),
  })

  it('what is written is read', () => {
    fc.assert(
      fc.property(anyFile, ({ tensors, metadata }) => {
        const back = readSafetensors(writeSafetensors(tensors, metadata))
        expect([...back.metadata].sort()).toEqual(Object.entries(metadata).sort())
        expect(back.tensors.size).toBe(tensors.length)
        for (const [name, want] of tensors) {
          const got = back.tensors.get(name)
          expect([got?.dtype, got?.shape, [...(got?.bytes ?? [])]]).toEqual([
            want.dtype,
            want.shape,
            [...want.bytes],
          ])
        }
      }),
    )
  })

  it('a damaged file is read within its bounds or refused with an error of ours', () => {
    const damage = fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { maxLength: 4 })
    let refused = 0
    let read = 0
    fc.assert(
      fc.property(
        anyFile,
        damage,
        fc.option(fc.nat(), { freq: 1 }),
        ({ tensors, metadata }, changes, cut) => {
          const whole = writeSafetensors(tensors, metadata)
          for (const [at, byte] of changes) whole[at % whole.length] = byte
          const bytes = cut === null ? whole : whole.subarray(0, cut % whole.length)
          try {
            for (const { shape, dtype, bytes: part } of readSafetensors(bytes).tensors.values()) {
              expect(part.buffer).toBe(bytes.buffer)
              expect(part.byteOffset + part.length).toBeLessThanOrEqual(bytes.byteOffset + bytes.length)
              expect(part.length).toBe(shape.reduce((n, d) => n * d, sizes[dtype]))
            }
            loadSafetensors(bytes, { device: reference })
            read++
          } catch (error) {
            if (!(error instanceof TilegradError)) throw error
            refused++
          }
        },
      ),
      { numRuns: 500 },
    )
    // Both happen often: some runs damage nothing, or only data.
    expect(Math.min(refused, read)).toBeGreaterThan(10)
  })

  it('any header over any data is read or refused with an error of ours', () => {
    const anyEntry = fc.record(
      {
        dtype: fc.constantFrom('U8', 'F32', 'I64', 'X'),
        shape: fc.oneof(fc.array(fc.integer({ min: -1, max: 4 })), fc.json(), fc.double()),
        data_offsets: fc.oneof(
          fc.tuple(fc.integer({ min: -1, max: 9 }), fc.integer({ min: -1, max: 9 })),
          fc.double(),
        ),
      },
      { requiredKeys: [] },
    )
    const anyHeader = fc.oneof(fc.json(), fc.dictionary(fc.string(), anyEntry))
    fc.assert(
      fc.property(
        anyHeader,
        fc.integer({ min: 0, max: 16 }),
        fc.option(fc.bigInt(0n, 2n ** 64n - 1n)),
        (header, data, length) => {
          try {
            loadSafetensors(file(header, data, length ?? undefined), { device: reference })
          } catch (error) {
            if (!(error instanceof TilegradError)) throw error
          }
        },
      ),
      { numRuns: 500 },
    )
  })
})
