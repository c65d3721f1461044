// @vitest-environment happy-dom
import { cleanup, fireEvent, screen } from '@testing-library/react';
import { afterEach, expect, it, vi } from 'vitest';
import { Failure } from '../api/client';
import { show } from '../testing/render';
import { LoginPage } from './LoginPage';

afterEach(cleanup);

const logIn = (token: string) => {
  fireEvent.change(screen.getByLabelText(/^Token/), { target: { value: token } });
  fireEvent.click(screen.getByRole('button', { name: 'Log in' }));
};

it('gives the token that was typed', async () => {
  const onLogin = vi.fn().mockResolvedValue(undefined);
  show(<LoginPage why={undefined} onLogin={onLogin} />);
  logIn('qz_1');
  expect(onLogin).toHaveBeenCalledWith({ token: 'qz_1' });
});

it('says what the daemon says, and lets one try again', async () => {
  const onLogin = vi.fn().mockRejectedValue(new Failure('unauthenticated', 'the token is not known here'));
  show(<LoginPage why={undefined} onLogin={onLogin} />);
  logIn('qz_wrong');
  expect((await screen.findByRole('alert')).textContent).toContain('the token is not known here');
  expect(screen.getByRole('button', { name: 'Log in' })).toHaveProperty('disabled', false);
});

it('tells why one is out again', () => {
  show(<LoginPage why="Your session is over." onLogin={vi.fn()} />);
  expect(screen.getByRole('alert').textContent).toContain('Your session is over.');
});
