import { elementwise, parseFormula } from '@tilegrad/core/formula'
import { scope, tensor } from 'tilegrad'
import type { Part } from './part.ts'
import type { Random } from './random.ts'

// Formulas of a grammar, and mutated ones: each gives values and gradients, or a typed error.

const FUNCTIONS = [
  'abs',
  'sign',
  'floor',
  'ceil',
  'round',
  'sqrt',
  'exp',
  'log',
  'log1p',
  'expm1',
  'sin',
  'cos',
] as const
const MORE = ['tanh', 'sigmoid', 'erf', 'square', 'relu', 'not'] as const
const OPERATORS = ['+', '-', '*', '/', '^', '>', '>=', '<', '<=', '==', '!=', 'and', 'or'] as const

function grown(random: Random, depth: number): string {
  if (depth === 0 || random.chance(0.15))
    return random.one([
      'x',
      'x',
      'x',
      'x',
      'y',
      'y',
      '0',
      '1',
      '2',
      '3',
      '0.5',
      '-1',
      '1e30',
      'pi',
      'e',
      'Infinity',
      '1e-300',
    ])
  const part = (): string => grown(random, depth - 1)
  switch (random.below(6)) {
    case 0:
      return `${random.one([...FUNCTIONS, ...MORE])}(${part()})`
    case 1:
      return `${random.one(['max', 'min'])}(${part()}, ${part()}${random.chance(0.3) ? `, ${part()}` : ''})`
    case 2:
      return `(${part()} ? ${part()} : ${part()})`
    case 3:
      return `-(${part()})`
    default:
      return `(${part()} ${random.one(OPERATORS)} ${part()})`
  }
}

const HOSTILE = [
  ...[
    'constructor',
    '__proto__',
    'toString',
    'valueOf',
    '__defineGetter__',
    'hasOwnProperty',
    'prototype',
    'i',
    'NaN',
  ],
  ...[
    'x.y',
    'x[1]',
    '[1, 2]',
    '{a: 1}',
    '"s"',
    '1 cm',
    'f(x) = x',
    'x = 1',
    ';',
    '\n',
    '#',
    '1:3',
    '!',
    "'",
    '%',
    'true',
  ],
  ...[
    'null',
    'undefined',
    'import(x)',
    'evaluate("1")',
    'this',
    'x!',
    '5!',
    '0x10',
    '1e999',
    '2i',
    '¬x',
    '\u0000',
    '𝄞',
    '',
  ],
] as const

function mutated(random: Random): string {
  let text = grown(random, 3)
  for (let n = 1 + random.below(3); n > 0; n--) {
    const at = random.below(text.length + 1)
    const cut = random.chance(0.5) ? random.below(4) : 0
    const more = random.chance(0.7) ? random.one(HOSTILE) : String.fromCharCode(random.below(128))
    text = text.slice(0, at) + more + text.slice(at + cut)
  }
  return text
}

/** Long and deep ones. */
function large(random: Random): string {
  const n = 1 + random.below(20_000)
  return random.one([
    `${'-'.repeat(n)}x`,
    `${'x+'.repeat(n)}x`,
    `${'x^'.repeat(n)}x`,
    `${'('.repeat(n)}x${')'.repeat(n)}`,
    `${'exp('.repeat(n)}x${')'.repeat(n)}`,
    `max(${'x,'.repeat(n)}x)`,
    `${'x?'.repeat(n)}x${':x'.repeat(n)}`,
    'v'.repeat(n),
    Array.from({ length: n % 500 }, (_, i) => `v${i}`).join('+') || 'x',
  ])
}

export const formulas: Part = {
  name: 'formulas',
  about: 'grown and mutated formulas: values and gradients, or a typed error',
  inputs: [3000, 120],
  async run({ random, count, attempt }) {
    for (let i = 0; i < count; i++) {
      const kind = random.real()
      const text =
        kind < 0.45 ? grown(random, 1 + random.below(4)) : kind < 0.95 ? mutated(random) : large(random)
      await attempt(
        () => JSON.stringify(text),
        () => {
          const f = elementwise(text)
          const takes = parseFormula(text).variables.length
          const x = tensor([0.5, 2, -3], { requiresGrad: true })
          const y = tensor([[1], [-0.25]], { requiresGrad: true })
          try {
            scope(() => {
              const result = f(...Array.from({ length: takes }, (_, i) => (i % 2 === 0 ? x : y)))
              if (result.dataSync().length !== result.numel) throw new Error('a result of another size')
              if (result.dtype === 'float32' && result.requiresGrad) result.sum().backward()
            })
          } finally {
            for (const t of [x.grad, y.grad, x, y]) t?.dispose()
          }
        },
      )
    }
  },
}
