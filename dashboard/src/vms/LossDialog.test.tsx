// @vitest-environment happy-dom
import { cleanup, fireEvent, screen, waitFor } from '@testing-library/react';
import { afterEach, expect, it, vi } from 'vitest';
import { show } from '../testing/render';
import { LossDialog } from './LossDialog';

afterEach(cleanup);

const dialog = () => {
  const [run, onClose] = [vi.fn().mockResolvedValue(undefined), vi.fn()];
  show(
    <LossDialog
      title="Delete db?"
      loss="db and its disk are lost for good."
      confirm="Delete"
      work={{ command: 'queztl-hv delete db', run }}
      onClose={onClose}
    />,
  );
  return { run, onClose };
};

it('names what is lost and the command, and does nothing before it is told to', () => {
  const { run } = dialog();
  expect(screen.getByText('db and its disk are lost for good.')).toBeTruthy();
  expect(screen.getByLabelText('Equivalent command').textContent).toBe('queztl-hv delete db');
  fireEvent.click(screen.getByRole('button', { name: 'Keep it' }));
  expect(run).not.toHaveBeenCalled();
});

it('does it and closes', async () => {
  const { run, onClose } = dialog();
  fireEvent.click(screen.getByRole('button', { name: 'Delete' }));
  await waitFor(() => expect(onClose).toHaveBeenCalled());
  expect(run).toHaveBeenCalledOnce();
});
