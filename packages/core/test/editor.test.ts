import { relative } from 'node:path'
import * as core from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { declarations, Editor, packageRoot, type Shown } from './support/editor.ts'

/** Everything that can be reached by a dot behind a tensor: methods and getters. */
const members = Object.getOwnPropertyNames(core.Tensor.prototype).filter((name) => name !== 'constructor')
const described = Object.getOwnPropertyDescriptors(core.Tensor.prototype)
const isMethod = (name: string): boolean =>
  typeof described[name as keyof typeof described].value === 'function'
const exported = core as Record<string, unknown>
/** Those that are functions of the package, too. */
const operators = members.filter((name) => isMethod(name) && typeof exported[name] === 'function')

/** A program that names each member, and each function of the same name. */
const programOf = (from: string): string =>
  [
    `import * as tg from '${from}'`,
    'declare const x: tg.Tensor',
    ...members.map((name) => `x.${name}${isMethod(name) ? '(' : ''}`),
    ...operators.map((name) => `tg.${name}(`),
  ].join('\n;')

const nameless = /\b(?:rest|args|__)_?\d|__namedParameters/

const emitted = declarations()
const seen = {
  'on the sources': { program: programOf('../src/index.ts'), files: new Map<string, string>() },
  'on the declaration files': { program: programOf('../dist/index.js'), files: emitted },
}

describe.each(Object.entries(seen))('what an editor shows of a tensor, %s', (_, { program, files }) => {
  const editor = new Editor(program, files)
  const of = new Map(members.map((name) => [name, editor.show('x.', name)]))

  test('there are as many as there were', () => {
    expect(members.length).toBeGreaterThan(120)
    expect(operators.length).toBeGreaterThan(110)
  })

  test.each(members)('x.%s has a text and an example', (name) => {
    const { documentation, completion } = of.get(name) as Shown
    expect(documentation).not.toBe('')
    expect(completion).toBe(documentation)
  })

  test.each(operators)('x.%s is documented as the function is, and named in its parameters', (name) => {
    const [method, fn] = [of.get(name) as Shown, editor.show('tg.', name)]
    expect(method.documentation).toBe(fn.documentation)
    expect(method.display).not.toMatch(nameless)
    expect(fn.display).not.toMatch(nameless)
    expect(method.parameters).toEqual(fn.parameters.map((names) => names.slice(1)))
    expect(method.definitions).toEqual(fn.definitions)
    for (const file of method.definitions)
      expect(relative(packageRoot, file)).toMatch(/^(src|dist)\/(ops|autograd)\//)
  })
})
