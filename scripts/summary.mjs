// Counts the tests in the reports of the last run, one per Node. As a program: prints `N passed, N failed, N skipped`.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root } from './setup.mjs'

/** Of the Node at hand, which must be there, and of the other one. */
export const reports = ['vitest', 'vitest-other-node'].map((name) => join(root, '.reports', `${name}.json`))

/** @param {string[]} files */
export function summary(files) {
  let passed = 0
  let failed = 0
  let skipped = 0
  for (const file of files) {
    const run = JSON.parse(readFileSync(file, 'utf8'))
    // A test file that does not load has no tests to fail: it counts as one failure.
    const broken = run.testResults.filter(
      (/** @type {any} */ result) => result.status === 'failed' && result.assertionResults.length === 0,
    ).length
    passed += run.numPassedTests
    failed += run.numFailedTests + broken
    skipped += run.numPendingTests + run.numTodoTests
  }
  return { passed, failed, line: `${passed} passed, ${failed} failed, ${skipped} skipped` }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const { passed, failed, line } = summary(reports.filter((file, i) => i === 0 || existsSync(file)))
    process.exitCode = passed > 0 && failed === 0 ? 0 : 1
    console.log(line)
  } catch (error) {
    console.error(`no test report: ${error}`)
    process.exitCode = 1
    console.log('0 passed, 1 failed, 0 skipped')
  }
}
