// Counts the tests in the report of the last run. As a program: prints `N passed, N failed, N skipped`.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root } from './setup.mjs'

export const report = join(root, '.reports', 'vitest.json')

export function summary() {
  const run = JSON.parse(readFileSync(report, 'utf8'))
  // A test file that does not load has no tests to fail: it counts as one failure.
  const broken = run.testResults.filter(
    (/** @type {any} */ file) => file.status === 'failed' && file.assertionResults.length === 0,
  ).length
  const passed = run.numPassedTests
  const failed = run.numFailedTests + broken
  const skipped = run.numPendingTests + run.numTodoTests
  return { passed, failed, line: `${passed} passed, ${failed} failed, ${skipped} skipped` }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const { passed, failed, line } = summary()
    process.exitCode = passed > 0 && failed === 0 ? 0 : 1
    console.log(line)
  } catch (error) {
    console.error(`no test report: ${error}`)
    process.exitCode = 1
    console.log('0 passed, 1 failed, 0 skipped')
  }
}
