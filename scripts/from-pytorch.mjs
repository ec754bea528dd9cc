// Makes docs/from-pytorch.md's tables by asking the library which of PyTorch's names it has: node scripts/from-pytorch.mjs. The text
// before the mark stays.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { root } from './setup.mjs'
import { elsewhere, leftOut, passedOver, unlike } from './torch-names.mjs'

const page = join(root, 'docs', 'from-pytorch.md')
const mark = '<!-- What follows is made by scripts/from-pytorch.mjs. -->'

/** PyTorch's name as ours would be. @param {string} name */
const camel = (name) => name.replace(/(?<=[A-Za-z0-9])_([a-z0-9])/g, (_, c) => c.toUpperCase())
/** Patterns are of names, or of places, as torch.nn.Linear, where they have a dot. @param {string} pattern */
const whole = (pattern) => {
  const of = new RegExp(`^(?:${pattern})$`)
  return (/** @type {string} */ space, /** @type {string} */ name) =>
    of.test(name) || of.test(`${space}.${name}`)
}
/** Whether it is one name, or several of them: not an expression that one writes. @param {string} ours */
const isName = (ours) => {
  const code = [...ours.matchAll(/`([^`]*)`/g)].map((m) => m[1] ?? '')
  return code.length === 0 || code.every((c) => /^[\w.]+$/.test(c))
}

/**
 * The tables, and how many names of each kind there are.
 * @param {Record<string, unknown>} library what 'tilegrad' exports
 * @param {Record<string, unknown>} data what 'tilegrad/data' exports
 */
export function tables(library, data) {
  const { version, ...spaces } = JSON.parse(
    readFileSync(join(root, 'test', 'fixtures', 'torch-names.json'), 'utf8'),
  )
  const of = (/** @type {unknown} */ owner) => /** @type {{ prototype: object }} */ (owner).prototype
  const methods = of(library.Tensor)
  const places = /** @type {Record<string, (name: string) => boolean>} */ ({
    // Some are fields, not methods.
    'torch.Tensor': (name) => name in methods || ['shape', 'dtype'].includes(name),
    torch: (name) => name in library || name in methods,
    'torch.nn.init': (name) => name in /** @type {object} */ (library.init),
    'torch.nn.Module': (name) => name in of(library.Module),
    'torch.optim.Optimizer': (name) => name in of(library.Optimizer),
    'torch.utils.data': (name) => name in data,
  })
  const skipped = passedOver.map(whole)
  const others = Object.entries(elsewhere).map(([pattern, ours]) => ({
    pattern,
    is: whole(pattern),
    ours,
    used: false,
  }))
  const reasons = leftOut.map(([why, pattern]) => ({ pattern, is: whole(pattern), why, used: false }))
  const isUnlike = whole(unlike)
  const lines = [mark, '']
  const count = { there: 0, renamed: 0, written: 0, out: 0, passed: 0 }
  /** @type {string[]} */
  const body = []
  for (const [space, names] of Object.entries(/** @type {Record<string, string[]>} */ (spaces))) {
    const has = places[space] ?? ((/** @type {string} */ name) => name in library)
    /** @type {string[]} */ const there = []
    /** @type {Map<string, string[]>} */ const other = new Map()
    /** @type {Map<string, string[]>} */ const out = new Map()
    const put = (
      /** @type {Map<string, string[]>} */ to,
      /** @type {string} */ key,
      /** @type {string} */ name,
    ) => to.set(key, [...(to.get(key) ?? []), name])
    for (const name of names) {
      if (has(camel(name)) && !isUnlike(space, name)) {
        there.push(camel(name))
        count.there++
        continue
      }
      const another = others.find(({ is }) => is(space, name))
      if (another) {
        another.used = true
        put(other, another.ours, name)
        count[isName(another.ours) ? 'renamed' : 'written']++
      } else if (skipped.some((is) => is(space, name))) count.passed++
      else {
        const reason = reasons.find(({ is }) => is(space, name))
        if (!reason)
          throw new Error(`${space}.${name} is not here, and scripts/torch-names.mjs does not say why`)
        reason.used = true
        put(out, reason.why, name)
        count.out++
      }
    }
    if (there.length + other.size + out.size === 0) continue
    body.push(`### ${space}`, '')
    if (there.length > 0)
      body.push(`${there.length} under their own name: ${there.map((n) => `\`${n}\``).join(' ')}`, '')
    if (other.size > 0) {
      body.push('| PyTorch | here |', '|---|---|')
      for (const [ours, list] of other)
        body.push(`| ${list.map((n) => `\`${n}\``).join(' ')} | ${ours.replaceAll('|', '\\|')} |`)
      body.push('')
    }
    for (const [why, list] of out)
      body.push(`Left out (${why}): ${list.map((n) => `\`${n}\``).join(' ')}.`, '')
  }
  const unused = [...others, ...reasons].filter(({ used }) => !used).map(({ pattern }) => pattern)
  const met = count.there + count.renamed + count.written + count.out
  lines.push(
    `## The names of PyTorch ${version.replace(/\+.*/, '')}`,
    '',
    `Of ${met} names in the places where somebody who builds transformers looks, ${count.there} are there under their own name in camel`,
    `case, ${count.renamed} under another, ${count.written} are written with others, ${count.out} are left out. ${count.passed} more are insides of PyTorch, or belong to`,
    'fields that this library does not enter: sparse, complex and quantised tensors, decompositions, signals, three-dimensional images,',
    'other devices.',
    '',
    ...body,
  )
  return { text: `${lines.join('\n').trimEnd()}\n`, count, unused }
}

/** The page as it should be. @param {Record<string, unknown>} library @param {Record<string, unknown>} data */
export function pageWith(library, data) {
  const before = readFileSync(page, 'utf8')
  return { before, after: before.slice(0, before.indexOf(mark)) + tables(library, data).text }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const built = (/** @type {string} */ file) => import(pathToFileURL(join(root, 'packages', file)).href)
  const library = await built('tilegrad/dist/index.js')
  const data = await built('data/dist/index.js')
  const { after } = pageWith(library, data)
  writeFileSync(page, after)
  console.log(JSON.stringify(tables(library, data).count))
}
