import {
  describeValue,
  expectOptions,
  to as moveTensor,
  noGrad,
  ShapeError,
  scope,
  show,
  Tensor,
  ValueError,
} from '@tilegrad/core'

/** Tensors by dotted name; `Object.entries` lists them in the order of the modules. */
export type StateDict = Record<string, Tensor>

/** Names that `loadStateDict` with `{ strict: false }` passed over. */
export interface LoadResult {
  /** Names the module has and the dict has not. */
  missing: string[]
  /** Names the dict has and the module has not. */
  unexpected: string[]
}

/** @internal @throws ValueError for an entry of a state dict that is no tensor, such as what JSON makes of one. */
export function expectEntry(place: string, value: unknown): void {
  if (!(value instanceof Tensor))
    throw new ValueError(`${place} must be a tensor, got ${describeValue(value)}`)
}

/** @internal Says which names are not on both sides, and throws what `Module.loadStateDict` throws. */
export function expectFitting(
  module: string,
  own: StateDict,
  dict: Readonly<StateDict>,
  options: { strict?: boolean },
): LoadResult {
  const { strict = true } = expectOptions('loadStateDict', options, { strict: 1 })
  if (
    typeof dict !== 'object' ||
    dict === null ||
    typeof dict.forward === 'function' ||
    dict instanceof Promise
  )
    throw new ValueError(
      `loadStateDict: takes tensors by name, as stateDict() and loadSafetensors(bytes) give them, got ${describeValue(dict)}`,
    )
  for (const key of Object.keys(own)) if (dict[key]) expectEntry(`loadStateDict: ${key}`, dict[key])
  const given = new Set(
    Object.keys(own)
      .filter((name) => dict[name])
      .map((name) => own[name]),
  )
  const missing = Object.keys(own).filter((name) => !given.has(own[name]))
  const unexpected = Object.keys(dict).filter((name) => !Object.hasOwn(own, name))
  const shapes: string[] = []
  for (const [name, target] of Object.entries(own)) {
    const source = dict[name]
    if (source && source.shape.join() !== target.shape.join()) {
      shapes.push(`${name} is ${show(target.shape)} in the module, ${show(source.shape)} in the dict`)
    }
  }
  const problems = [
    ...(strict && missing.length > 0 ? [`missing: ${missing.join(', ')}`] : []),
    ...(strict && unexpected.length > 0 ? [`unexpected: ${unexpected.join(', ')}`] : []),
    ...(shapes.length > 0 ? [`shapes differ: ${shapes.join('; ')}`] : []),
  ]
  if (problems.length > 0) {
    const names = strict && missing.length + unexpected.length > 0
    const fix = names ? '\nPass { strict: false } to load the names both sides have.' : ''
    const message = `loadStateDict: the dict does not fit ${module}; nothing was changed.\n${problems.map((p) => `  ${p}`).join('\n')}${fix}`
    throw shapes.length > 0 ? new ShapeError(message) : new ValueError(message)
  }
  return { missing, unexpected }
}

/** @internal Copies values into the tensors of a module of this class: see `Module.loadStateDict`. */
export function loadStateDict(
  module: string,
  own: StateDict,
  dict: Readonly<StateDict>,
  options: { strict?: boolean },
): LoadResult {
  const result = expectFitting(module, own, dict, options)
  noGrad(() =>
    scope(() => {
      const pairs = Object.entries(own).flatMap(([name, target]) => {
        const source = dict[name]
        return source ? [[target, moveTensor(source, target.backend)] as const] : []
      })
      for (const [target, source] of pairs) target.copy_(source)
    }),
  )
  return result
}
