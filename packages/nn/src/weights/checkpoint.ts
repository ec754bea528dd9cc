import { type Backend, describeValue, expectOptions, scope, Tensor, ValueError } from '@tilegrad/core'
import { brief, quoted } from '../brief.ts'
import type { StateDict } from '../module/state-dict.ts'
import { loadSafetensors, readSafetensors, saveSafetensors } from './safetensors.ts'

/** The name of the metadata that holds, as JSON, what is no tensor, and where which tensor is. */
const TREE = 'tilegrad.checkpoint'
/** How deep objects and lists may be nested. */
const deepest = 100

/** Something with a state of its own: a module, an optimiser, a scheduler, a `GradScaler`. */
interface Stateful {
  stateDict(): object
  loadStateDict(state: object): unknown
  /** Says before anything is changed whether a state fits. */
  checkStateDict?(state: object): void
}

const isStateful = (value: unknown): value is Stateful =>
  typeof (value as Partial<Stateful> | null | undefined)?.loadStateDict === 'function' &&
  typeof (value as Partial<Stateful>).stateDict === 'function'

type Plain = Readonly<Record<string, unknown>>

/** An object with names, of no class. */
function isPlain(value: unknown): value is Plain {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  const prototype = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

/** The numbers that JSON has not. */
const NUMBERS: Readonly<Record<string, number>> = {
  NaN: Number.NaN,
  Infinity,
  '-Infinity': -Infinity,
  '-0': -0,
}
const numberName = (n: number): string => (Object.is(n, -0) ? '-0' : String(n))

const inside = (path: string, key: string | number): string => (path === '' ? String(key) : `${path}.${key}`)

function refuseName(op: string, key: string): void {
  if (key === '__proto__') throw new ValueError(`${op}: nothing can be called '__proto__'`)
}

/**
 * JSON of a value, where `{ $tensor: name }` stands for a tensor and `{ $number: text }` for a number that JSON has not. Names that
 * begin with $ have one more of it there.
 */
class Encoder {
  /** Each tensor once, by a name. */
  readonly tensors: Record<string, Tensor> = {}
  readonly #names = new Map<Tensor, string>()

  encode(value: unknown, path: string, depth = 0): unknown {
    if (depth > deepest)
      throw new ValueError(
        `saveCheckpoint: ${quoted(path)} is nested more than ${deepest} deep; is it in itself?`,
      )
    if (value instanceof Tensor) return { $tensor: this.#nameOf(value, path) }
    if (isStateful(value)) return this.encode(value.stateDict(), path, depth + 1)
    if (typeof value === 'number' && numberName(value) in NUMBERS) return { $number: numberName(value) }
    if (value === null || ['number', 'string', 'boolean'].includes(typeof value)) return value
    if (Array.isArray(value)) return value.map((one, i) => this.encode(one, inside(path, i), depth + 1))
    if (!isPlain(value))
      throw new ValueError(
        `saveCheckpoint: ${quoted(path)} must be a tensor, plain data, or have stateDict() and loadStateDict(), got ${describeValue(value)}`,
      )
    const pairs = Object.entries(value).filter(([, one]) => one !== undefined)
    return Object.fromEntries(
      pairs.map(([key, one]) => {
        refuseName('saveCheckpoint', key)
        return [key.startsWith('$') ? `$${key}` : key, this.encode(one, inside(path, key), depth + 1)]
      }),
    )
  }

  #nameOf(t: Tensor, path: string): string {
    let name = this.#names.get(t)
    if (name === undefined) {
      name = path
      for (let i = 2; Object.hasOwn(this.tensors, name); i++) name = `${path}#${i}`
      this.#names.set(t, name)
      this.tensors[name] = t
    }
    return name
  }
}

const damaged = (what: string): ValueError => new ValueError(`loadCheckpoint: ${what}; is the file damaged?`)

/** What `Encoder` made JSON of, with the tensors of the file; `used` has their names then. */
function decode(value: unknown, tensors: Readonly<StateDict>, used: Set<string>, depth = 0): unknown {
  const next = (one: unknown): unknown => decode(one, tensors, used, depth + 1)
  if (depth > 2 * deepest) throw damaged('its entries are nested too deeply')
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(next)
  const { $tensor: name, $number: number } = value as Plain
  if (name !== undefined) {
    if (typeof name !== 'string' || !Object.hasOwn(tensors, name))
      throw damaged(`it has no tensor ${brief(name)}`)
    used.add(name)
    return tensors[name]
  }
  if (number !== undefined) {
    if (typeof number !== 'string' || !Object.hasOwn(NUMBERS, number))
      throw damaged(`${brief(number)} is no number`)
    return NUMBERS[number]
  }
  return Object.fromEntries(
    Object.entries(value).map(([key, one]) => {
      refuseName('loadCheckpoint', key)
      return [key.startsWith('$') ? key.slice(1) : key, next(one)]
    }),
  )
}

/** Says what of a file goes into what, and gives back the rest. */
function divide(value: unknown, into: unknown, path: string, loads: [Stateful, object][]): unknown {
  const wrong = (expected: string): ValueError =>
    new ValueError(
      `loadCheckpoint: ${path === '' ? 'the file' : quoted(path)} holds ${brief(value)}, which does not fit ${expected}; nothing was changed`,
    )
  if (isStateful(into)) {
    if (typeof value !== 'object' || value === null || value instanceof Tensor)
      throw wrong(`a ${into.constructor.name}`)
    loads.push([into, value])
    return undefined
  }
  if (Array.isArray(into)) {
    if (!Array.isArray(value) || value.length !== into.length) throw wrong(`a list of ${into.length}`)
    for (const [i, one] of into.entries()) divide(value[i], one, inside(path, i), loads)
    return undefined
  }
  if (!isPlain(into))
    throw new ValueError(
      `loadCheckpoint: ${path === '' ? 'takes what to load into, as { model, optimizer }' : `${quoted(path)} must be a module, an optimiser or a scheduler`}, got ${describeValue(into)}`,
    )
  if (!isPlain(value)) throw wrong('an object')
  const missing = Object.keys(into).filter((key) => !Object.hasOwn(value, key))
  if (missing.length > 0)
    throw new ValueError(
      `loadCheckpoint: the file has no ${missing.map((key) => quoted(inside(path, key))).join(', ')}; it has ${brief(Object.keys(value))}; nothing was changed`,
    )
  const rest = Object.entries(value)
    .map(([key, one]): [string, unknown] => [
      key,
      Object.hasOwn(into, key) ? divide(one, into[key], inside(path, key), loads) : one,
    ])
    .filter(([, one]) => one !== undefined)
  return path === '' || rest.length > 0 ? Object.fromEntries(rest) : undefined
}

function keepAll(value: unknown): void {
  if (value instanceof Tensor) value.keep()
  else if (typeof value === 'object' && value !== null) for (const one of Object.values(value)) keepAll(one)
}

/**
 * Writes all that a training needs to go on into one file, as `torch.save` does: modules, optimisers, schedulers and a `GradScaler`
 * (whatever has a `stateDict()`), tensors, numbers, texts, and objects and lists of them. It is a safetensors file, whose tensors
 * have names such as `model.0.weight`. Reads from the device: await it before the next step.
 *
 * @param entries such as `{ model, optimizer, scheduler, step }`.
 * @returns the bytes of the file.
 * @throws ValueError naming what is none of these.
 * @example
 * const model = new Linear(4, 2)
 * const optimizer = new AdamW(model.parameters())
 * const bytes = await saveCheckpoint({ model, optimizer, step: 100 })
 * const { step } = loadCheckpoint<{ step: number }>(bytes, { model, optimizer })
 * step // → 100
 */
export async function saveCheckpoint(entries: Readonly<Record<string, unknown>>): Promise<Uint8Array> {
  if (!isPlain(entries))
    throw new ValueError(
      `saveCheckpoint: takes entries by name, as { model, optimizer, step }, got ${describeValue(entries)}`,
    )
  const encoder = new Encoder()
  const tree = JSON.stringify(encoder.encode(entries, ''))
  return saveSafetensors(encoder.tensors, { [TREE]: tree })
}

/**
 * Reads what `saveCheckpoint` wrote, and loads it into what is given by the same names. If anything does not fit, nothing is changed.
 *
 * @param bytes the whole file, such as `await readFile(path)`.
 * @param into such as `{ model, optimizer, scheduler }`; by default nothing, and states are for you to hand to `loadStateDict`.
 * @param options.device where tensors are made that are loaded into nothing; default `defaultBackend()`.
 * @returns all other entries of the file.
 * @throws ValueError for what is no such file or lacks an entry, and what `loadStateDict` throws.
 * @example
 * const bytes = await saveCheckpoint({ model: new Linear(3, 2), losses: [0.5, 0.25] })
 * const checkpoint = loadCheckpoint<{ model: Record<string, Tensor>; losses: number[] }>(bytes)
 * checkpoint.losses // → 0.5,0.25
 * new Linear(3, 2).loadStateDict(checkpoint.model)
 */
export function loadCheckpoint<T extends object = Record<string, unknown>>(
  bytes: Uint8Array | ArrayBuffer | DataView,
  into: Readonly<Record<string, unknown>> = {},
  options: { device?: Backend | string } = {},
): T {
  const { device } = expectOptions('loadCheckpoint', options, { device: 1 })
  const text = readSafetensors(bytes).metadata.get(TREE)
  if (text === undefined)
    throw new ValueError(
      'loadCheckpoint: this safetensors file holds tensors alone; read it by loadSafetensors(bytes)',
    )
  let tree: unknown
  try {
    tree = JSON.parse(text)
  } catch (error) {
    throw damaged(`what it says of its entries is no JSON: ${(error as Error).message}`)
  }
  return scope(() => {
    const tensors = loadSafetensors(bytes, { ...(device !== undefined && { device }), widen: false })
    const used = new Set<string>()
    const entries = decode(tree, tensors, used)
    const stray = Object.keys(tensors).filter((name) => !used.has(name))
    if (stray.length > 0) throw damaged(`its tensors ${brief(stray)} belong to nothing`)
    const loads: [Stateful, object][] = []
    const rest = divide(entries, into, '', loads)
    for (const [target, state] of loads) target.checkStateDict?.(state)
    // What cannot say beforehand whether a state fits comes first: if it throws, nothing else has changed.
    const byCheck = (checked: boolean) => loads.filter(([target]) => !!target.checkStateDict === checked)
    for (const [target, state] of [...byCheck(false), ...byCheck(true)]) target.loadStateDict(state)
    keepAll(rest)
    return rest as T
  })
}
